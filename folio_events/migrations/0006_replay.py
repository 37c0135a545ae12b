from django.db import migrations, models


#: Updated with every batch; see 0002_storage_parameters.
IN_PLACE = "fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500"


def set_parameters(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"ALTER TABLE folio_events_replay SET ({IN_PLACE})")


class Migration(migrations.Migration):
    dependencies = [
        ("folio_events", "0005_tombstone"),
    ]

    operations = [
        migrations.CreateModel(
            name="Replay",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("running", "running"),
                            ("cancelled", "cancelled"),
                            ("done", "done"),
                        ],
                        max_length=10,
                    ),
                ),
                (
                    "source",
                    models.CharField(
                        choices=[
                            ("broker", "the broker's log"),
                            ("outbox", "the outbox"),
                            ("reset", "a reset of offsets"),
                        ],
                        max_length=10,
                    ),
                ),
                ("receivers", models.JSONField(help_text="Names of the receivers.")),
                ("criteria", models.JSONField(help_text="Which events.")),
                (
                    "worker",
                    models.UUIDField(help_text="Of the process that works on it; fences others."),
                ),
                (
                    "position",
                    models.JSONField(blank=True, default=dict, help_text="Where it goes on."),
                ),
                (
                    "passed",
                    models.BigIntegerField(default=0, help_text="Messages that were looked at."),
                ),
                ("unreadable", models.BigIntegerField(default=0, help_text="Of these: no events.")),
                (
                    "deliveries",
                    models.BigIntegerField(default=0, help_text="Deliveries that were made."),
                ),
                ("reason", models.TextField(blank=True, default="")),
                ("created_by", models.CharField(blank=True, default="", max_length=255)),
                ("created_at", models.DateTimeField()),
                ("updated_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "verbose_name": "replay",
                "permissions": (("run_replay", "Can start, resume and cancel replays"),),
                "default_permissions": ("view",),
            },
        ),
        migrations.AddField(
            model_name="consumeroffset",
            name="replay",
            field=models.IntegerField(
                db_default=0, default=0, help_text="Number of the replay that a reset began, or 0."
            ),
        ),
        migrations.AddField(
            model_name="consumeroffset",
            name="replay_end",
            field=models.BigIntegerField(
                db_default=0, default=0, help_text="Offset from which on that is over."
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("replay", 0), ("state", "retrying")),
                fields=["next_attempt_at", "id"],
                name="folio_events_delivery_live",
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("order", "partition"), ("state__in", ["retrying", "dead"])),
                fields=["receiver", "topic", "partition", "id"],
                name="folio_events_delivery_place",
            ),
        ),
        migrations.RunPython(set_parameters, migrations.RunPython.noop),
    ]
