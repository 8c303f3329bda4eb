"""What a broker decides."""

from __future__ import annotations

import json
from typing import Any

from trio_overlay.protocol.broker import (
    ID_TAKEN,
    TOO_MANY,
    UNAVAILABLE,
    WRONG_SENDER,
    Register,
    Request,
    check_peer_signal,
    digest_of,
    encode_request,
)
from trio_overlay.protocol.broker_registrations import (
    BrokerLimits,
    Claim,
    Close,
    Decision,
    Forward,
    Locate,
    Member,
    Registrations,
    Release,
    Send,
    unavailable,
)

OFFER = {"type": "offer", "sdp": "v=0"}
SECRET = "0123456789abcdef"


class Table:
    """A broker without time, whose questions are answered as the test says."""

    def __init__(self, limits: BrokerLimits | None = None) -> None:
        self.registrations = Registrations(limits)
        self.now = 0.0
        self.elsewhere: set[str] = set()
        self.forwarded: list[Any] = []
        self.released: list[str] = []
        self.closed: dict[Member, str] = {}

    def enter(self) -> Member:
        return self.registrations.enter(self.now)

    def say(self, member: Member, value: Any) -> list[tuple[Member, Any]]:
        """*member* says *value*; whatever is then said to whom."""
        text = value if isinstance(value, str) else json.dumps(value)
        return self.carry_out(member, self.registrations.receive(self.now, member, text))

    def carry_out(self, member: Member, decision: Decision) -> list[tuple[Member, Any]]:
        said = []
        while True:
            actions, question = decision
            for action in actions:
                match action:
                    case Send(to, text):
                        said.append((to, json.loads(text)))
                    case Close(closed, reason):
                        self.closed[closed] = reason
                    case Release(identifier):
                        self.released.append(identifier)
            match question:
                case None:
                    return said
                case Claim(identifier):
                    outcome = identifier not in self.elsewhere
                case Locate(identifier):
                    outcome = identifier in self.elsewhere
                case Forward(signal):
                    self.forwarded.append(dict(signal.params))
                    outcome = True
            decision = self.registrations.answered(self.now, member, outcome)

    def call(self, member: Member, method: str, **params: Any) -> Any:
        """The answer to one request: its result, or the code of its error."""
        frame = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        ((to, answer),) = self.say(member, frame)
        assert to is member
        assert answer["id"] == 1
        error: dict[str, Any] | None = answer["error"]
        return answer["result"] if error is None else error["code"]

    def registered(self, identifier: str) -> Member:
        member = self.enter()
        assert self.call(member, "register", id=identifier) == identifier
        return member


def signal(sender: str, recipient: str) -> Any:
    params = {"from": sender, "to": recipient, "signal": OFFER}
    return {"jsonrpc": "2.0", "method": "signal", "params": params}


def test_an_id_belongs_to_one_until_it_goes() -> None:
    table = Table()
    ada, other = table.registered("ada"), table.enter()
    assert table.call(other, "exists", id="ada") is True
    assert table.call(other, "register", id="ada") == ID_TAKEN
    assert table.call(ada, "register", id="ada") == ID_TAKEN, "the same again is taken, too"
    assert table.registrations.leave(ada) == (Release("ada"),)
    assert table.call(other, "exists", id="ada") is False
    assert table.call(other, "register", id="ada") == "ada"
    assert table.call(other, "unregister") is None
    assert table.released == ["ada"]
    assert not table.registrations.holds("ada")


def test_ids_that_are_names_in_other_languages_are_nothing_special() -> None:
    table = Table()
    assert table.call(table.enter(), "exists", id="toString") is False
    assert table.call(table.enter(), "find", id="constructor") is None
    table.registered("__proto__")
    assert table.call(table.enter(), "find", id="__proto__") == "__proto__"


def test_another_id_replaces_the_first_once_it_is_granted() -> None:
    table = Table()
    member = table.registered("ada")
    table.elsewhere.add("bob")
    assert table.call(member, "register", id="bob") == ID_TAKEN
    assert table.registrations.holds("ada")
    assert table.call(member, "register", id="eve") == "eve"
    assert table.released == ["ada"]
    assert member.identifier == "eve"


def test_a_signal_reaches_whom_it_is_for_and_names_its_true_sender() -> None:
    table = Table()
    ada, bob = table.registered("ada"), table.registered("bob")
    assert table.say(ada, signal("ada", "bob")) == [(bob, signal("ada", "bob"))]
    assert table.say(ada, signal("bob", "ada")) == []
    assert table.say(table.enter(), signal("ada", "bob")) == []
    assert table.call(ada, "signal", **signal("eve", "bob")["params"]) == WRONG_SENDER
    assert table.forwarded == []


def test_a_signal_comes_in_the_generation_of_who_gets_it() -> None:
    table = Table()
    new, old = table.registered("new"), table.enter()
    register = {"id": "7", "message": {"type": "register", "id": "old"}}
    assert table.say(old, register) == [(old, {"id": "7", "message": "old", "error": None})]
    text = json.dumps(OFFER, separators=(",", ":"))
    in_old = {"message": {"type": "signal", "from": "new", "to": "old", "signal": text}}
    assert table.say(new, signal("new", "old")) == [(old, in_old)]
    back = {"message": {"type": "signal", "from": "old", "to": "new", "signal": text}}
    assert table.say(old, back) == [(new, signal("old", "new"))]


def test_what_is_not_here_is_asked_of_the_registry() -> None:
    table = Table()
    table.elsewhere.add("far")
    ada = table.registered("ada")
    assert table.call(ada, "exists", id="far") is True
    assert table.call(ada, "find", id="far") == "far"
    table.say(ada, signal("ada", "far"))
    assert table.forwarded == [signal("ada", "far")["params"]]
    came = check_peer_signal(signal("far", "ada")["params"])
    (sent,) = table.registrations.deliver(came)
    assert isinstance(sent, Send)
    assert (sent.member, json.loads(sent.text)) == (ada, signal("far", "ada"))
    assert table.registrations.deliver(check_peer_signal(signal("far", "bob")["params"])) == ()


def test_a_registry_that_cannot_be_asked_is_an_error_and_changes_nothing() -> None:
    table = Table()
    ada = table.registered("ada")
    frame = json.dumps({"id": 5, "method": "register", "params": {"id": "bob"}})
    actions, question = table.registrations.receive(0, ada, frame)
    assert (actions, question) == ([], Claim("bob"))
    actions, question = table.registrations.answered(0, ada, unavailable("gone"))
    (sent,) = actions
    assert isinstance(sent, Send)
    assert json.loads(sent.text)["error"]["code"] == UNAVAILABLE
    assert ada.identifier == "ada"
    assert table.call(table.enter(), "register", id="bob") == "bob"


def test_two_who_claim_one_id_at_a_time_are_asked_for_once() -> None:
    table = Table()
    first, second = table.enter(), table.enter()
    frame = json.dumps({"id": 5, "method": "register", "params": {"id": "ada"}})
    _, question = table.registrations.receive(0, first, frame)
    assert question == Claim("ada")
    assert table.call(second, "register", id="ada") == ID_TAKEN
    table.registrations.leave(first)
    assert table.call(second, "register", id="ada") == "ada"


def test_what_is_granted_to_one_who_was_closed_meanwhile_is_released() -> None:
    table = Table(BrokerLimits(lease=10))
    member = table.enter()
    frame = json.dumps({"id": 5, "method": "register", "params": {"id": "ada"}})
    table.registrations.receive(0, member, frame)
    assert any(isinstance(action, Close) for action in table.registrations.tick(10))
    decision = table.registrations.answered(10, member, outcome=True)
    assert decision == ((Release("ada"),), None)
    assert table.call(table.enter(), "register", id="ada") == "ada"


def test_a_peer_with_its_secret_takes_its_id_from_its_former_connection() -> None:
    table = Table()
    former, next_, bob = table.enter(), table.registered("other"), table.registered("bob")
    assert table.call(former, "register", id="ada", resume=SECRET) == "ada"
    for forged in ({}, {"resume": SECRET + "!"}, {"resume": digest_of(SECRET)}):
        assert table.call(next_, "register", id="ada", **forged) == ID_TAKEN
    assert table.call(former, "register", id="ada", resume=SECRET) == ID_TAKEN, "it has it"
    assert table.closed == {}
    assert table.call(next_, "register", id="ada", resume=SECRET) == "ada"
    assert table.closed == {former: "its peer has registered anew"}
    assert table.released == ["other"], "the one it had before, and not ada"
    assert table.say(bob, signal("bob", "ada")) == [(next_, signal("bob", "ada"))]
    assert table.registrations.leave(former) == ()
    assert table.registrations.holds("ada")
    assert table.registrations.leave(next_) == (Release("ada"),)


def test_an_id_without_a_secret_is_taken_for_everybody() -> None:
    table = Table()
    table.registered("ada")
    for secret in ({}, {"resume": SECRET}):
        assert table.call(table.enter(), "register", id="ada", **secret) == ID_TAKEN


def test_the_registry_is_asked_with_the_digest_of_the_secret() -> None:
    registrations = Registrations()
    for secret, digest in ((None, ""), (SECRET, digest_of(SECRET))):
        text = encode_request(Request(Register("ada", secret), 1))
        _, question = registrations.receive(0, member := registrations.enter(0), text)
        assert question == Claim("ada", digest)
        registrations.answered(0, member, False)


def test_silence_for_a_lease_frees_the_id_and_a_word_renews_it() -> None:
    table = Table(BrokerLimits(lease=100))
    ada, bob = table.registered("ada"), table.registered("bob")
    table.now = 60
    table.call(ada, "ping")
    assert table.registrations.next_tick_at == 100
    assert table.registrations.tick(99) == []
    actions = table.registrations.tick(100)
    assert actions == [Release("bob"), Close(bob, "nothing was heard for 100 s")]
    assert table.registrations.next_tick_at == 160
    assert table.registrations.receive(101, bob, "{}") == ((), None)


def test_an_id_that_the_registry_lost_ends_its_connection() -> None:
    table = Table()
    ada = table.registered("ada")
    assert table.registrations.lose("ada", "not renewed") == [Close(ada, "not renewed")]
    assert not table.registrations.holds("ada")
    assert table.registrations.lose("ada", "not renewed") == ()
    assert table.registrations.leave(ada) == ()


def test_a_batch_is_answered_in_one_and_its_questions_wait_for_each_other() -> None:
    table = Table()
    table.elsewhere.add("far")
    member = table.enter()
    batch = [
        {"jsonrpc": "2.0", "id": 1, "method": "register", "params": {"id": "ada"}},
        {"jsonrpc": "2.0", "method": "ping"},
        {"jsonrpc": "2.0", "id": 2, "method": "exists", "params": {"id": "far"}},
        signal("ada", "far"),
        {"jsonrpc": "2.0", "id": 3, "method": "dance"},
    ]
    ((to, answers),) = table.say(member, batch)
    assert to is member
    assert [answer["id"] for answer in answers] == [1, 2, 3]
    assert [answer["result"] for answer in answers] == ["ada", True, None]
    assert len(table.forwarded) == 1
    assert table.say(member, [{"jsonrpc": "2.0", "method": "ping"}]) == []


def test_registrations_over_the_limit_are_refused_and_come_back() -> None:
    table = Table(BrokerLimits(registrations_at_once=2, registrations_per_second=1))
    member = table.enter()
    assert [table.call(member, "register", id=name) for name in "abc"] == ["a", "b", TOO_MANY]
    table.now = 1
    assert table.call(member, "register", id="c") == "c"


def test_who_floods_the_broker_is_closed_and_nobody_else() -> None:
    table = Table(BrokerLimits(signals_at_once=3, requests_at_once=3, bytes_at_once=2000))
    ada, bob = table.registered("ada"), table.registered("bob")
    for _ in range(4):
        table.say(ada, signal("ada", "bob"))
    assert table.closed == {ada: "too many signals in a short time"}
    assert not table.registrations.holds("ada")
    assert table.call(bob, "ping") == "pong"
    for _ in range(2):
        table.say(bob, "{")
    assert table.closed[bob] == "too many requests in a short time"
    eve = table.enter()
    table.say(eve, "x" * 2001)
    assert table.closed[eve] == "too many bytes in a short time"
