"""Rows that are encoded and searched within a test."""

from django.contrib.auth.models import User
from django.test import TestCase

from pgembed.demo.tables import photograph
from pgembed.django.testing import drain
from shop.models import Poster


class SearchTests(TestCase):
    def setUp(self) -> None:
        rows = [photograph(title) for title in ("Neuschwanstein Castle", "Taj Mahal", "Koala")]
        Poster.objects.bulk_create(
            Poster(title=row["title"], kind=row["kind"], price=10, photo=row["picture"]) for row in rows
        )
        drain()

    def test_words_find_a_castle(self) -> None:
        found = self.client.get("/search", {"q": "a castle", "below": 50}).json()["posters"]
        assert found[0]["title"] == "Neuschwanstein Castle"
        assert self.client.get("/search", {"q": "a castle", "below": 5}).json()["posters"] == []

    async def test_a_building_is_like_a_building(self) -> None:
        castle = await Poster.objects.aget(title="Neuschwanstein Castle")
        found = (await self.async_client.get(f"/similar/{castle.pk}")).json()["posters"]
        assert [poster["title"] for poster in found] == ["Taj Mahal", "Koala"]

    def test_the_admin_searches(self) -> None:
        self.client.force_login(User.objects.create_superuser("anna"))
        page = self.client.get("/admin/shop/poster/", {"q": "an animal"})
        self.assertContains(page, "embedding: 3 of 3 rows encoded, 0 waiting, 0 given up")
        assert page.context["cl"].result_list[0].title == "Koala"
