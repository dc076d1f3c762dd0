"""What a PACS is talked to with: addresses, a listener, a queue on disk, sending, retrieving.

It knows nothing of what a study says: files come and go as they are. Needs the extra `pacs`.
"""
