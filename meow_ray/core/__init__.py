"""Storage, tables, schemas, artifacts and the cache: what every stage is built on."""
