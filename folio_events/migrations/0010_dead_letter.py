from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("folio_events", "0009_attempt"),
    ]

    operations = [
        migrations.CreateModel(
            name="BulkAction",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                (
                    "subject",
                    models.CharField(
                        choices=[("delivery", "deliveries"), ("withheld", "withheld messages")],
                        max_length=10,
                    ),
                ),
                (
                    "action",
                    models.CharField(
                        choices=[
                            ("retry", "retry"),
                            ("release", "release"),
                            ("discard", "discard"),
                        ],
                        max_length=10,
                    ),
                ),
                ("criteria", models.JSONField(blank=True, default=dict, help_text="Which rows.")),
                ("digest", models.CharField(help_text="Of the criteria.", max_length=64)),
                ("last_id", models.BigIntegerField(help_text="Newer rows are left alone.")),
                (
                    "position",
                    models.BigIntegerField(default=0, help_text="Last id that was passed."),
                ),
                (
                    "total",
                    models.BigIntegerField(help_text="Rows that matched when it was started."),
                ),
                ("done", models.BigIntegerField(default=0, help_text="Rows that were settled.")),
                ("rate", models.FloatField(blank=True, help_text="Most rows a second.", null=True)),
                ("next_at", models.DateTimeField(help_text="When the next row is due.")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("running", "running"),
                            ("cancelled", "cancelled"),
                            ("done", "done"),
                        ],
                        default="running",
                        max_length=10,
                    ),
                ),
                ("reason", models.TextField(blank=True, default="")),
                ("created_by", models.CharField(blank=True, default="", max_length=255)),
                (
                    "user",
                    models.CharField(
                        blank=True, default="", help_text="Primary key of the user.", max_length=255
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("updated_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "verbose_name": "bulk action",
                "permissions": (("run_bulkaction", "Can start and cancel bulk actions"),),
                "default_permissions": ("view",),
            },
        ),
        migrations.AlterModelOptions(
            name="delivery",
            options={
                "default_permissions": ("view",),
                "permissions": (
                    ("retry_delivery", "Can retry deliveries"),
                    ("discard_delivery", "Can discard deliveries"),
                    ("repoint_delivery", "Can re-point deliveries"),
                    ("edit_delivery", "Can edit the messages of deliveries"),
                ),
                "verbose_name": "delivery",
                "verbose_name_plural": "deliveries",
            },
        ),
        migrations.AddField(
            model_name="delivery",
            name="bulk_action",
            field=models.IntegerField(
                blank=True, help_text="The last bulk action that settled it.", null=True
            ),
        ),
        migrations.AddField(
            model_name="delivery",
            name="edited_at",
            field=models.DateTimeField(
                blank=True, help_text="When a person changed the message last.", null=True
            ),
        ),
        migrations.AddField(
            model_name="delivery",
            name="fingerprint",
            field=models.CharField(
                blank=True, help_text="Failures of one cause share it.", max_length=16, null=True
            ),
        ),
        migrations.AddField(
            model_name="delivery",
            name="original_headers",
            field=models.BinaryField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="delivery",
            name="original_payload",
            field=models.BinaryField(
                blank=True, help_text="The record's bytes before anybody changed them.", null=True
            ),
        ),
        migrations.AddField(
            model_name="delivery",
            name="original_raw_key",
            field=models.BinaryField(blank=True, null=True),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("state__in", ["retrying", "dead"])),
                fields=["fingerprint", "id"],
                name="folio_events_delivery_cause",
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("bulk_action__isnull", False)),
                fields=["bulk_action", "id"],
                name="folio_events_delivery_bulk",
            ),
        ),
        migrations.AddConstraint(
            model_name="bulkaction",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "running")),
                fields=("subject", "digest"),
                name="folio_events_bulk_once",
            ),
        ),
    ]
