"""Alembic's environment: writes the SQL of the migrations and never connects, so that what an administrator
reads in `pgembed install --sql` is what `pgembed install` runs."""

from alembic import context

context.configure(
    dialect_name="postgresql",
    version_table="schema_version",
    version_table_schema="pgembed",
    output_buffer=context.config.output_buffer,
    as_sql=True,
    literal_binds=True,
)
context.run_migrations()
