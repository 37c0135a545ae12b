from django.db import migrations, models

#: A few rows that change every few seconds, as in 0002.
IN_PLACE = "fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500"


def set_parameters(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for table in ("folio_events_process", "folio_events_eventcount"):
            schema_editor.execute(f"ALTER TABLE {table} SET ({IN_PLACE})")


class Migration(migrations.Migration):

    dependencies = [
        ('folio_events', '0007_backfill'),
    ]

    operations = [
        migrations.CreateModel(
            name='EventCount',
            fields=[
                ('pk', models.CompositePrimaryKey('span', 'started_at', 'outcome', 'name', 'shard', blank=True, editable=False, primary_key=True, serialize=False)),
                ('span', models.SmallIntegerField(help_text='Seconds: 60 or 600.')),
                ('started_at', models.DateTimeField()),
                ('outcome', models.CharField(choices=[('published', 'published'), ('handled', 'handled'), ('failed', 'failed'), ('dead', 'dead')], max_length=10)),
                ('name', models.CharField(help_text='Logical topic or receiver.', max_length=255)),
                ('shard', models.SmallIntegerField(help_text="Keeps processes out of each other's way.")),
                ('count', models.BigIntegerField()),
            ],
            options={
                'verbose_name': 'event count',
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='Process',
            fields=[
                ('id', models.UUIDField(primary_key=True, serialize=False)),
                ('kind', models.CharField(choices=[('relay', 'relay'), ('task', 'relay, as a Celery task'), ('consumer', 'consumer')], max_length=10)),
                ('name', models.CharField(help_text="Consumer group, or the relay's database.", max_length=255)),
                ('host', models.CharField(max_length=255)),
                ('pid', models.IntegerField()),
                ('state', models.CharField(choices=[('listening', 'listens for wake-ups'), ('polling', 'polls'), ('standby', 'stands by'), ('stalled', 'waits for the broker'), ('waiting', 'waits for records'), ('working', 'works on a batch')], max_length=10)),
                ('detail', models.TextField(blank=True, default='', help_text='Why it is in this state.')),
                ('partitions', models.JSONField(blank=True, default=dict, help_text='Topic to numbers of the partitions it has.')),
                ('records', models.IntegerField(default=0, help_text='Records of the batch in hand.')),
                ('busy_since', models.DateTimeField(blank=True, help_text='When it was begun.', null=True)),
                ('interval', models.FloatField(help_text='Seconds between two heartbeats.')),
                ('started_at', models.DateTimeField()),
                ('heartbeat_at', models.DateTimeField()),
            ],
            options={
                'verbose_name': 'process',
                'verbose_name_plural': 'processes',
                'default_permissions': ('view',),
            },
        ),
        migrations.RunPython(set_parameters, migrations.RunPython.noop),
    ]
