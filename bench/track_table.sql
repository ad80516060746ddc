-- A bare table for what evstream_track is given.
CREATE TABLE bare (
	event_id uuid,
	user_id text,
	event_type text,
	occurred_at timestamptz,
	properties jsonb
);
