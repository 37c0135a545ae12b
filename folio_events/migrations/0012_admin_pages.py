from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("folio_events", "0011_provision_permission")]
    operations = [
        migrations.CreateModel(
            name="Dashboard",
            fields=[],
            options={
                "verbose_name": "dashboard",
                "verbose_name_plural": "dashboard",
                "proxy": True,
                "default_permissions": (),
                "indexes": [],
                "constraints": [],
            },
            bases=("folio_events.process",),
        ),
        migrations.CreateModel(
            name="DeadLetter",
            fields=[],
            options={
                "verbose_name": "dead letter",
                "proxy": True,
                "default_permissions": (),
                "indexes": [],
                "constraints": [],
            },
            bases=("folio_events.delivery",),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                fields=["state", "receiver"],
                name="folio_events_delivery_count",
                condition=models.Q(state__in=["retrying", "dead"]),
            ),
        ),
    ]
