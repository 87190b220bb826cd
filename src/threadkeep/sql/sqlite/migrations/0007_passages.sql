-- Single messages are found too: for that the index holds more of them (search_index.py), so all is indexed anew.
UPDATE sessions SET indexed_epoch = -1 - abs(random() / 2) WHERE search_no IS NOT NULL;
