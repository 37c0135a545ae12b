import django.db.models.deletion
from django.db import migrations, models

#: Grows for days and shrinks by batches, as in 0002.
LOG = (
    "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05, "
    "autovacuum_analyze_scale_factor = 0.02"
)


def set_parameters(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"ALTER TABLE folio_events_attempt SET ({LOG})")


class Migration(migrations.Migration):
    dependencies = [
        ("folio_events", "0008_process"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="outboxmessage",
            options={
                "default_permissions": ("view",),
                "permissions": (("view_private", "Can view private fields of payloads"),),
                "verbose_name": "outbox message",
            },
        ),
        migrations.CreateModel(
            name="Attempt",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "receiver",
                    models.CharField(
                        help_text="Who ran; a delivery may change it.", max_length=255
                    ),
                ),
                ("number", models.IntegerField(help_text="Counted from 1.")),
                ("started_at", models.DateTimeField()),
                (
                    "duration",
                    models.FloatField(
                        help_text="Seconds; null: it never told of an end.", null=True
                    ),
                ),
                (
                    "outcome",
                    models.CharField(
                        choices=[
                            ("succeeded", "succeeded"),
                            ("failed", "failed"),
                            ("lost", "no end"),
                        ],
                        max_length=10,
                    ),
                ),
                ("error_class", models.CharField(blank=True, default="", max_length=255)),
                ("error", models.TextField(blank=True, default="")),
                ("traceback", models.TextField(blank=True, default="")),
                (
                    "delivery",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="+",
                        to="folio_events.delivery",
                    ),
                ),
            ],
            options={
                "verbose_name": "attempt",
                "default_permissions": (),
                "indexes": [
                    models.Index(fields=["delivery", "id"], name="folio_events_attempt_of")
                ],
            },
        ),
        migrations.RunPython(set_parameters, migrations.RunPython.noop),
    ]
