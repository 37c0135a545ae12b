from django.db import migrations, models

#: Rows come and go; see 0002_storage_parameters.
CHURNING = (
    "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 100, "
    "autovacuum_analyze_scale_factor = 0.02"
)


def set_parameters(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"ALTER TABLE folio_events_orphan SET ({CHURNING})")


class Migration(migrations.Migration):
    dependencies = [("folio_events", "0003_repoint_permission")]
    operations = [
        migrations.CreateModel(
            name="Orphan",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("topic", models.CharField(help_text="Topic on the broker.", max_length=249)),
                (
                    "topic_id",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text="Tells a topic from one created anew.",
                        max_length=64,
                    ),
                ),
                ("partition", models.IntegerField()),
                ("offset", models.BigIntegerField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "open"),
                            ("assigned", "assigned"),
                            ("discarded", "discarded"),
                        ],
                        default="open",
                        max_length=10,
                    ),
                ),
                (
                    "fault",
                    models.CharField(
                        choices=[
                            ("missing", "no tenant"),
                            ("disagreeing", "several tenants"),
                            ("invalid", "no tenant's name"),
                        ],
                        max_length=12,
                    ),
                ),
                ("error", models.TextField(help_text="Why it has no owner.")),
                ("key", models.TextField(blank=True, null=True)),
                ("raw_key", models.BinaryField(blank=True, null=True)),
                (
                    "headers",
                    models.BinaryField(help_text="The record's headers, as JSON pairs in Latin-1."),
                ),
                (
                    "payload",
                    models.BinaryField(blank=True, help_text="The record's bytes.", null=True),
                ),
                ("published_at", models.DateTimeField(help_text="The record's timestamp.")),
                ("found_at", models.DateTimeField()),
                (
                    "tenant",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text="The tenant that it was assigned.",
                        max_length=255,
                    ),
                ),
                ("resolved_at", models.DateTimeField(blank=True, null=True)),
                (
                    "reason",
                    models.TextField(blank=True, default="", help_text="Why it was discarded."),
                ),
            ],
            options={
                "verbose_name": "orphan",
                "default_permissions": ("view",),
                "permissions": (
                    ("assign_orphan", "Can assign orphans to tenants"),
                    ("discard_orphan", "Can discard orphans"),
                ),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("topic", "partition", "offset", "topic_id"),
                        name="folio_events_orphan_once",
                    )
                ],
                "indexes": [
                    models.Index(fields=["key"], name="folio_events_orphan_key"),
                    models.Index(
                        fields=["id"],
                        name="folio_events_orphan_open",
                        condition=models.Q(state="open"),
                    ),
                    models.Index(
                        fields=["resolved_at"],
                        name="folio_events_orphan_age",
                        condition=models.Q(resolved_at__isnull=False),
                    ),
                ],
            },
        ),
        migrations.RunPython(set_parameters, migrations.RunPython.noop),
    ]
