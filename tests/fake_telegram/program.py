"""The Bot API as far as OpenClaw uses it: `/bot<token>/<method>`, and what tests make happen under `/_…`.

Prints its port and serves until it is ended. A second `getUpdates` on one token ends the first with 409.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

#: Tokens that begin so are refused, as Telegram refuses revoked ones.
REFUSED = "999:"
#: Longest that one `getUpdates` hangs, in seconds, whatever it asks for.
LONGEST_POLL = 10.0


class World:
    """What the stand-in remembers; `news` guards it, and tells who waits for something."""

    def __init__(self):
        self.news = threading.Condition()
        self.updates = {}
        self.polls = {}
        self.sent = []
        self.seen = set()
        self.revoked = set()
        self.number = 1000

    def is_refused(self, token):
        return token.startswith(REFUSED) or token in self.revoked

    def next(self):
        self.number += 1
        return self.number

    def say(self, said):
        person = {"id": said["user"], "is_bot": False, "first_name": said["name"], "username": said["name"].lower()}
        chat = {"id": said["user"], "type": "private", "first_name": said["name"]}
        message = {"message_id": self.next(), "date": int(time.time()), "text": said["text"]}
        update = {"update_id": self.next(), "message": message | {"from": person, "chat": chat}}
        self.updates.setdefault(said["token"], []).append(update)


WORLD = World()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):  # noqa: A002 -- the library's name
        """A test's output is the test's."""

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path, _, query = self.path.partition("?")
        if path.startswith("/_"):
            self.answer(200, self.control(path, body))
            return
        _, token, method = path.split("/", 2)
        self.bot_method(token.removeprefix("bot"), method, self.arguments(body) | dict(parse_qsl(query)))

    def control(self, path, body):
        with WORLD.news:
            match path:
                case "/_say":
                    WORLD.say(json.loads(body))
                case "/_refuse":
                    WORLD.revoked.add(json.loads(body)["token"])
                case "/_sent":
                    return WORLD.sent
                case "/_tokens":
                    return sorted(WORLD.seen)
            WORLD.news.notify_all()
        return {}

    def bot_method(self, token, method, arguments):
        with WORLD.news:
            WORLD.seen.add(token)
        if WORLD.is_refused(token):
            self.refuse(401, "Unauthorized")
        elif method.lower() == "getupdates":
            self.get_updates(token, arguments)
        else:
            self.answer(200, {"ok": True, "result": self.result(token, method, arguments)})

    def result(self, token, method, arguments):
        number = int(token.partition(":")[0])
        match method:
            case "getMe":
                return {"id": number, "is_bot": True, "first_name": "Claw", "username": f"claw{number}_bot",
                        "can_join_groups": True, "can_read_all_group_messages": True}  # fmt: skip
            case "getWebhookInfo":
                return {"url": "", "has_custom_certificate": False, "pending_update_count": 0}
            case "getMyCommands" | "getForumTopicIconStickers":
                return []
            case "sendMessage" | "editMessageText":
                with WORLD.news:
                    WORLD.sent.append({"token": token, "method": method, **arguments})
                    sent = {"message_id": WORLD.next(), "date": int(time.time()), "text": arguments.get("text", "")}
                return sent | {"chat": {"id": int(arguments.get("chat_id") or 0), "type": "private"}}
            case _:
                return True

    def get_updates(self, token, arguments):
        offset, end = int(arguments.get("offset") or 0), time.monotonic() + LONGEST_POLL
        with WORLD.news:
            mine = WORLD.polls[token] = WORLD.polls.get(token, 0) + 1
            WORLD.news.notify_all()
            while True:
                found = [each for each in WORLD.updates.get(token, []) if each["update_id"] >= offset]
                is_ousted, left = WORLD.polls[token] != mine, end - time.monotonic()
                if found or is_ousted or WORLD.is_refused(token) or left <= 0 or not int(arguments.get("timeout") or 0):
                    break
                WORLD.news.wait(left)
        if WORLD.is_refused(token):
            self.refuse(401, "Unauthorized")
        elif is_ousted:
            self.refuse(409, "Conflict: terminated by other getUpdates request; make sure that only one bot runs")
        else:
            self.answer(200, {"ok": True, "result": found})

    def refuse(self, status, why):
        self.answer(status, {"ok": False, "error_code": status, "description": why})

    def arguments(self, body):
        kind = self.headers.get("content-type", "")
        if "json" in kind:
            return json.loads(body or b"{}")
        return dict(parse_qsl(body.decode(errors="replace"))) if "urlencoded" in kind else {}

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
