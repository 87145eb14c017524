"""`python -m dcprune.schemas`: write the schemas of the models."""

from dcprune import schemas

for name, schema in schemas.generate().items():
    schemas.path(name).write_text(schemas.to_text(schema))
