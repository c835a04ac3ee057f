"""Posters found by words, and posters like another one."""

from django.http import HttpRequest, JsonResponse

from pgembed import Row, Text
from shop.models import Poster


def search(request: HttpRequest) -> JsonResponse:
    """The posters nearest to words, below a price."""
    posters = Poster.objects.filter(price__lt=request.GET.get("below", 1000))
    found = posters.search(Text(request.GET["q"]), limit=10).values("id", "title", "price", "score")
    return JsonResponse({"posters": list(found)})


async def similar(request: HttpRequest, poster_id: int) -> JsonResponse:
    """The posters nearest to one of them."""
    found = Poster.objects.exclude(id=poster_id).search(Row(poster_id), limit=5)
    return JsonResponse({"posters": [poster async for poster in found.values("id", "title", "score")]})
