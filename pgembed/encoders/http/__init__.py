"""``http:MODEL``: a model behind a server, in the form of OpenAI, text-embeddings-inference, infinity, or any other.

    http:text-embedding-3-small                                      OpenAI; the key from OPENAI_API_KEY
    http:BAAI/bge-m3         {"preset": "tei", "url": "http://tei:8080"}
    http:clip                {"preset": "infinity", "url": "http://localhost:7997"}     texts and pictures
    http:embed-v4.0          {"preset": "cohere", "key_env": "CO_API_KEY", "dimensions": 1024}
    http:any                 {"preset": "custom", "url": …, "request": {"q": ["{text}"]}, "vectors": "result.*.vec"}

``config.py`` lists the settings. The key comes from an environment variable or a file, never from the settings.

The fingerprint is of the model's name, what the server says of it (text-embeddings-inference: name and commit; else the
name in its answer), the dimensions, the request and the prompts; and of its vector of a plain input (sample.py), which
tells that weights have changed under one name. The address is not part of it: a server may move.
"""

from pgembed.encoders.http.encoder import HttpEncoder

__all__ = ["HttpEncoder"]
