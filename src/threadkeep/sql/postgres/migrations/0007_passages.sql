-- Single messages are found too: for that the index holds more of them (search_index.py), so all is indexed anew.
UPDATE threadkeep.sessions SET indexed_epoch = -1 - (random() * 1e15)::bigint WHERE search_no IS NOT NULL;
