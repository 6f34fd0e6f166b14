"""The checking and mending of a state folder: what is recorded, what is on disk and what runs should be one story.

``examine`` looks and changes nothing; ``repair`` does what the next host would do, and removes what belongs to nobody.
"""
