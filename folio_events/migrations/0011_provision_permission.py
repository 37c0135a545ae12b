from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("folio_events", "0010_dead_letter")]
    operations = [
        migrations.AlterModelOptions(
            name="relaycursor",
            options={
                "default_permissions": ("view",),
                "permissions": (("provision_tenant", "Can enable and purge tenants"),),
                "verbose_name": "relay cursor",
            },
        ),
    ]
