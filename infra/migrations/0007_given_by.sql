-- Which request gave a result: the same one again, after its answer was lost, is no second result.
alter table pending_calls add column given_by text collate "C";
