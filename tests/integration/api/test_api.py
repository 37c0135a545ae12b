"""What all operations of the REST API have in common: who may call, how they refuse, pages."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.authentication import BasicAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from folio_events.api import paging
from folio_events.api.schema import FILE
from folio_events.api.urls import urlpatterns
from folio_events.exceptions import BrokerUnavailableError
from tests.integration.api.conftest import ROOT, Api
from tests.integration.api.rows import delivery, one_of_each, outbox_message

pytestmark = pytest.mark.django_db

SCHEMA = yaml.safe_load(FILE.read_text())
OPERATIONS = [
    (method, path, what)
    for path, methods in SCHEMA["paths"].items()
    for method, what in methods.items()
]
PATHS = sorted(path for path in SCHEMA["paths"])


class AllowAll(BasePermission):
    """A permission of the project's own."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return True


def call(client: Client, method: str, path: str) -> Any:
    filled = path.replace("{event_id}", str(uuid.uuid4()))
    filled = filled.replace("{id}", str(uuid.uuid4()) if "backfills" in path else "1")
    return client.generic(method.upper(), filled, "{}", "application/json")


@pytest.mark.parametrize(("method", "path", "what"), OPERATIONS, ids=lambda one: str(one)[:60])
def test_an_operation_asks_for_the_permissions_that_its_description_names(
    method: str, path: str, what: dict[str, Any], staff_with: Callable[..., Api]
) -> None:
    """Nobody, members without staff status and staff that lacks one of them are refused."""
    named = what["description"].partition("Permissions: ")[2].rstrip(".")
    wanted = [name.strip("`") for name in named.split(", ")]
    assert wanted

    refused = [Api(), staff_with(*wanted, is_staff=False), staff_with(*wanted[1:])]
    assert [call(one.client, method, path).status_code for one in refused] == [403] * 3
    assert call(staff_with(*wanted).client, method, path).status_code != 403


def test_the_description_is_for_staff_too(api: Api) -> None:
    """It is the file, as YAML."""
    assert Api().get("schema").status_code == 403
    found = api.get("schema")
    assert (found.status_code, found["Content-Type"]) == (200, "application/yaml")
    assert found.content == FILE.read_bytes()


def test_a_project_may_ask_for_another_permission(folio_events: Callable[..., None]) -> None:
    """Programs may be let in that are no users; the log then names none."""
    folio_events(API_PERMISSION="tests.integration.api.test_api.AllowAll")
    row = delivery()

    assert Api().post("deliveries/retry", ids=[row.pk]).json() == {"changed": 1}


def test_a_browser_has_to_show_its_csrf_token(admin_user: User) -> None:
    """As Django REST framework's session authentication asks for it."""
    row = delivery()
    api = Api(admin_user, csrf=True)

    refused = api.post("deliveries/retry", ids=[row.pk])

    assert refused.status_code == 403
    assert "CSRF" in refused.json()["detail"]


def test_calls_are_throttled_at_a_rate_that_the_project_names(api: Api, settings: Any) -> None:
    """429 says when to come again; without a rate there is no limit."""
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"folio_events": "2/hour"}}
    answers = [api.get("processes") for _ in range(3)]

    assert [one.status_code for one in answers] == [200, 200, 429]
    assert int(answers[-1]["Retry-After"]) > 0
    assert answers[-1].json()["title"] == "Too Many Requests"

    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"folio_events": None}}
    assert api.get("processes").status_code == 200


def test_the_projects_own_authentication_is_respected(
    admin_user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Django REST framework's views have by default; 401 where that has a challenge."""
    monkeypatch.setattr(APIView, "authentication_classes", [BasicAuthentication])
    refused = Client().get(f"{ROOT}/processes")
    taken = Client().get(
        f"{ROOT}/processes", headers={"Authorization": "Basic YWRtaW46cGFzc3dvcmQ="}
    )

    assert (refused.status_code, refused["WWW-Authenticate"]) == (401, 'Basic realm="api"')
    assert taken.status_code == 200


@pytest.mark.parametrize(
    ("path", "query", "where"),
    [
        ("deliveries", {"limit": "0"}, "query.limit"),
        ("deliveries", {"limit": "201"}, "query.limit"),
        ("deliveries", {"limit": "many"}, "query.limit"),
        ("deliveries", {"before": "-1"}, "query.before"),
        ("deliveries", {"before": "9" * 30}, "query.before"),
        ("deliveries", {"before": "abc"}, "query.before"),
        ("deliveries", {"state": "lost"}, "query.state"),
        ("deliveries", {"key": "a\0b"}, "query.key"),
        ("deliveries", {"event_id": "x"}, "query.event_id"),
        ("deliveries", {"receivr": "x"}, "query.receivr"),
        ("deliveries/1", {"limit": "1"}, "query.limit"),
        ("outbox", {"topic": ""}, "query.topic"),
        ("events", {}, "query"),
        ("events", {"key": "a", "tenant": "b"}, "query"),
        ("events", {"key": "a", "before": "1"}, "query.before"),
        ("dead-letters/groups", {"since": "yesterday"}, "query.since"),
    ],
)
def test_parameters_that_cannot_be_are_refused(
    api: Api, path: str, query: dict[str, str], where: str
) -> None:
    """400, as problem details that name the place; unknown parameters are no typing errors to guess."""
    found = api.get(path, **query)

    assert (found.status_code, found["Content-Type"]) == (400, "application/problem+json")
    problem = found.json()
    assert problem["status"] == 400
    assert [fault["where"] for fault in problem["errors"]] == [where]
    assert problem["errors"][0]["detail"] in problem["detail"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"{", ""),
        (b"\xff", ""),
        (b'{"ids": NaN}', ""),
        (b"[" * 100_000, ""),
        (b'{"ids": [' + b"9" * 5000 + b"]}", ""),
        (b"[]", "body"),
        (b"null", "body"),
        (b"{}", "body.ids"),
        (b'{"ids": []}', "body.ids"),
        (b'{"ids": [1e400]}', "body.ids.0"),
        (b'{"ids": [9223372036854775808]}', "body.ids.0"),
        (b'{"ids": ["\\u0000"]}', "body.ids.0"),
        (b'{"ids": [true, 1]}', "body.ids.0"),
        (b'{"ids": [1], "dry_run": true}', "body.dry_run"),
        (b'{"ids": [1], "\\u0000": true}', "body.\0"),
    ],
)
def test_bodies_that_cannot_be_are_refused(api: Api, body: bytes, where: str) -> None:
    """400 whatever comes: no JSON, no UTF-8, nested without end, numbers of any length."""
    found = api.client.post(f"{ROOT}/deliveries/retry", body, "application/json")

    assert (found.status_code, found["Content-Type"]) == (400, "application/problem+json")
    problem = found.json()
    assert [fault["where"] for fault in problem["errors"]] == ([where] if where else [])
    assert problem["detail"]


@pytest.mark.parametrize(
    "path",
    ["deliveries/0x1", "deliveries/" + "9" * 40, "deliveries/-1", "deliveries/²", "outbox/1.0",
     "orphans/a%00b", "events/1", "events/a%00b", "replays/9", "bulk-actions/7"],
)  # fmt: skip
def test_ids_that_nothing_has_are_not_found(api: Api, path: str) -> None:
    """404 as problem details, whether the id cannot be or only is not."""
    found = api.client.get(f"{ROOT}/{path}")

    assert (found.status_code, found["Content-Type"]) == (404, "application/problem+json")
    assert found.json()["title"] == "Not Found"


def test_other_methods_and_types_are_refused(api: Api, settings: Any) -> None:
    """405, 406, 413 and 415, each as problem details."""
    url = f"{ROOT}/deliveries/retry"
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    answers = [
        api.client.put(f"{ROOT}/deliveries"),
        api.client.options(f"{ROOT}/deliveries"),
        api.client.get(f"{ROOT}/deliveries", headers={"Accept": "text/csv"}),
        api.client.post(url, b" " * 101, "application/json"),
        api.client.post(url, b"<ids/>", "application/xml"),
    ]

    assert [one.status_code for one in answers] == [405, 405, 406, 413, 415]
    assert {one["Content-Type"] for one in answers} == {"application/problem+json"}


def test_more_parameters_than_django_takes_are_refused(api: Api, settings: Any) -> None:
    """400, not an error page."""
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 2
    found = api.client.get(f"{ROOT}/deliveries?a=1&b=2&c=3")

    assert (found.status_code, found["Content-Type"]) == (400, "application/problem+json")


def test_answers_are_not_kept_by_caches(api: Api) -> None:
    """Neither those that show something nor refusals."""
    assert api.get("deliveries")["Cache-Control"] == "no-store"
    assert Api().get("deliveries")["Cache-Control"] == "no-store"


def test_a_broker_that_is_away_is_told(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """503: the caller may try again."""

    def away(*_args: object, **_kwargs: object) -> None:
        raise BrokerUnavailableError("nobody answers")

    monkeypatch.setattr("folio_events.api.topics.topic_report", away)

    found = api.get("topics/report")

    assert found.status_code == 503
    assert found.json()["detail"] == "BrokerUnavailableError: nobody answers"


def test_an_error_that_nobody_foresaw_is_not_hidden(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is Django's to log and to answer."""

    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("folio_events.api.topics.named_topics", fail)

    with pytest.raises(RuntimeError, match="a bug"):
        api.get("topics")


def test_operations_have_transactions_of_their_own() -> None:
    """ATOMIC_REQUESTS wraps none of them: a replay commits batch by batch."""
    own = [one.callback for one in urlpatterns if str(one.pattern).startswith("folio-events/")]
    assert own
    for view in own:
        assert view._non_atomic_requests >= {"default"}


# Pages


def test_pages_lead_through_all_rows_the_newest_first(api: Api) -> None:
    """Each has the URL of the next, the last has none."""
    ids = [outbox_message().pk for _ in range(5)]
    seen: list[list[int]] = []
    url: str | None = f"{ROOT}/outbox?limit=2&topic=library.note"
    while url:
        found = api.client.get(url).json()
        seen.append([row["id"] for row in found["results"]])
        url = found["next"]

    assert seen == [ids[:2:-1], ids[2:0:-1], ids[:1]]


def test_a_filter_without_an_index_looks_at_a_bounded_piece(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page may be short or empty and yet have a next one, until the rows end."""
    monkeypatch.setattr(paging, "LOOKED_AT", 3)
    wanted = outbox_message(tenant="diku").pk
    for _ in range(7):
        outbox_message(tenant="college")

    pages: list[list[int]] = []
    url: str | None = f"{ROOT}/outbox?tenant=diku"
    while url:
        found = api.client.get(url).json()
        pages.append([row["id"] for row in found["results"]])
        url = found["next"]

    assert pages == [[], [], [wanted]]


@pytest.mark.parametrize("path", ["outbox", "withheld", "deliveries", "orphans"])
def test_a_longer_page_costs_no_more_queries(api: Api, path: str) -> None:
    """Whatever a row shows of other tables comes with the page."""
    one_of_each()
    counts = []
    for _ in range(2):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert api.get(path).json()["results"]
        assert not any("COUNT(" in query["sql"] for query in queries)
        counts.append(len(queries))
        for _ in range(4):
            one_of_each()

    assert counts[0] == counts[1] <= 4
