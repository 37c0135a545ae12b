from django.db import migrations

# Autovacuum and page layout on PostgreSQL; the reasons stand in docs/reference/tables.md. A
# table's TOAST table goes by the same values. Setting them locks out neither readers nor writers.

#: Grow for days and shrink by batches: vacuumed and analyzed at a share of the table that does
#: not grow to millions of rows.
LOGS = {
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_vacuum_insert_scale_factor": 0.05,
    "autovacuum_analyze_scale_factor": 0.02,
}
#: Rows that change or come and go, and which every poll asks for.
CHURNING = {
    "autovacuum_vacuum_scale_factor": 0.01,
    "autovacuum_vacuum_threshold": 100,
    "autovacuum_analyze_scale_factor": 0.02,
}
#: A few rows that are updated with every batch, in columns without index: half of each page is
#: left to their next versions. Counted in rows, since a share of so few says nothing.
IN_PLACE = {
    "fillfactor": 50,
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_threshold": 500,
}
PARAMETERS = {
    "folio_events_outboxmessage": LOGS,
    "folio_events_publication": LOGS,
    "folio_events_inboxentry": LOGS,
    "folio_events_brokerrecord": LOGS,
    "folio_events_delivery": CHURNING,
    "folio_events_relaygap": CHURNING,
    "folio_events_relaycursor": IN_PLACE,
    "folio_events_consumeroffset": IN_PLACE,
    "folio_events_brokerpartition": IN_PLACE,
    "folio_events_receiverstate": IN_PLACE,
}


def set_parameters(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for table, parameters in PARAMETERS.items():
            values = ", ".join(f"{name} = {value}" for name, value in parameters.items())
            schema_editor.execute(f"ALTER TABLE {table} SET ({values})")


def reset_parameters(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for table, parameters in PARAMETERS.items():
            schema_editor.execute(f"ALTER TABLE {table} RESET ({', '.join(parameters)})")


class Migration(migrations.Migration):
    dependencies = [("folio_events", "0001_initial")]
    operations = [migrations.RunPython(set_parameters, reset_parameters)]
