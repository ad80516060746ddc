-- Run once by the image's entry point, in the database POSTGRES_DB.
CREATE EXTENSION evstream;
