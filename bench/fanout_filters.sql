-- 1,000 subscribers, of whom 10 get the events of each of 100 users.
SELECT count(evstream_subscribe('s-' || n, user_ids => ARRAY['u-' || n / 10])) FROM generate_series(0, 999) n \g /dev/null
