"""Posters, each with a photograph by whose meaning it is found."""

from django.db import models

from pgembed.django import EmbeddingField, EmbeddingIndex, EmbeddingManager


class Poster(models.Model):
    title = models.CharField(max_length=200)
    kind = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    photo = models.BinaryField()
    embedding = EmbeddingField(encoder="lite", image="photo")

    objects = EmbeddingManager()

    class Meta:
        indexes = [EmbeddingIndex(fields=["embedding"], name="poster_embedding")]

    def __str__(self) -> str:
        return self.title
