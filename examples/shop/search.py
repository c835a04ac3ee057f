"""Words, a picture, and both together, in the database that PGEMBED_DSN names."""

import pgembed
from pgembed import Image, Text

with pgembed.connect() as db:
    castle = db.search("poster", Text("a castle"), columns=["title", "photo"], limit=1)[0]
    queries = {
        "a cat": Text("a cat"),
        f"like '{castle.title}'": Image(castle.photo),
        f"like '{castle.title}', but at night": Image(castle.photo) + 0.7 * Text("at night"),
    }
    for title, query in queries.items():
        print(f"{title}:")
        for row in db.search("poster", query, where="price < %s", params=[50], limit=5):
            print(f"  {row.score:.3f}  {row.title}, {row.price}")
