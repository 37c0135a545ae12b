from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("folio_events", "0012_admin_pages")]
    operations = [
        migrations.AlterModelOptions(
            name="consumeroffset",
            options={
                "default_permissions": ("view",),
                "permissions": (("reset_offsets", "Can reset offsets of groups"),),
                "verbose_name": "consumer offset",
            },
        ),
    ]
