CREATE TABLE poster (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title text NOT NULL,
    kind text NOT NULL,
    price numeric NOT NULL,
    photo bytea NOT NULL
);
