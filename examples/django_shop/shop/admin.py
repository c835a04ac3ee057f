"""Posters in the admin."""

from django.contrib import admin

from pgembed.django.admin import EmbeddingAdmin
from shop.models import Poster


@admin.register(Poster)
class PosterAdmin(EmbeddingAdmin, admin.ModelAdmin):
    list_display = ("title", "kind", "price")
    list_filter = ("kind",)
