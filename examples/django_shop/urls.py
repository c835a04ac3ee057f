"""Where the views are."""

from django.contrib import admin
from django.urls import path
from shop import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("search", views.search),
    path("similar/<int:poster_id>", views.similar),
]
