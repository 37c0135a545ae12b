from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("folio_events", "0004_orphan")]
    operations = [
        migrations.AlterField(
            model_name="outboxmessage",
            name="payload",
            field=models.BinaryField(
                blank=True, help_text="The bytes that are sent; null: a tombstone.", null=True
            ),
        ),
    ]
