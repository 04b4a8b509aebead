-- Vectors of former texts, of all models.
delete from memory_vectors using unnest($2::text[], $3::bytea[]) as new (id, digest)
where user_id = $1 and memory_id = new.id and memory_vectors.digest <> new.digest
