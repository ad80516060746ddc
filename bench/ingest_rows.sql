-- The rows that were stored, in the order in which they came.
-- :events_file and :ids_file name the files, on the server.
COPY (SELECT * FROM evstream.events ORDER BY received_at, log_partition, log_offset) TO :'events_file' (FORMAT binary);
COPY (SELECT i.* FROM evstream.ids i JOIN evstream.events e USING (event_id) ORDER BY e.received_at, e.log_partition, e.log_offset) TO :'ids_file' (FORMAT binary);
