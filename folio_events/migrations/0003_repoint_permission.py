from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("folio_events", "0002_storage_parameters")]
    operations = [
        migrations.AlterModelOptions(
            name="delivery",
            options={
                "default_permissions": ("view",),
                "permissions": (
                    ("retry_delivery", "Can retry deliveries"),
                    ("discard_delivery", "Can discard deliveries"),
                    ("repoint_delivery", "Can re-point deliveries"),
                ),
                "verbose_name": "delivery",
                "verbose_name_plural": "deliveries",
            },
        ),
    ]
