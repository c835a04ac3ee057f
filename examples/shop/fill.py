"""Fill the table with the photographs that travel with pgembed; yours come from anywhere."""

import os

import psycopg

from pgembed.demo.tables import photograph_rows

statement = "COPY poster (title, kind, price, photo) FROM STDIN"
with psycopg.connect(os.environ["PGEMBED_DSN"]) as conn, conn.cursor() as cursor, cursor.copy(statement) as copy:
    for number, row in enumerate(photograph_rows()):
        copy.write_row([row["title"], row["kind"], 10 + number % 60, row["picture"]])
