"""Reads the turns of a Responses WebSocket from the bytes that passed: a `response.create`, and the events of its
response."""

import hashlib
import json

TEXT, CONTINUATION = 0x1, 0x0
LAST_EVENTS = ["response.completed", "response.failed", "response.incomplete", "error"]


class FrameReader:
    """The text messages of one direction (RFC 6455, section 5.2)."""

    def __init__(self, kept):
        self.kept, self.parts = kept, []

    def read_message(self):
        """The next complete text message, and the position where its last frame begins; None if there is none yet."""
        while (frame := self.read_frame()) is not None:
            position, opcode, is_final, payload = frame
            if opcode in (TEXT, CONTINUATION):
                self.parts.append(payload)
                if is_final:
                    text, self.parts = b"".join(self.parts), []
                    return text, position
        return None

    def read_frame(self):
        data, start = self.kept.data, self.kept.position
        if len(data) < start + 2:
            return None
        length, position = data[start + 1] & 0x7F, start + 2
        if length >= 126:
            size = 2 if length == 126 else 8
            if len(data) < position + size:
                return None
            length, position = int.from_bytes(data[position : position + size], "big"), position + size
        is_masked = data[start + 1] & 0x80
        mask, position = (bytes(data[position : position + 4]), position + 4) if is_masked else (None, position)
        if len(data) < position + length:
            return None
        payload = bytes(data[position : position + length])
        self.kept.position = position + length
        return start, data[start] & 0x0F, bool(data[start] & 0x80), unmasked(payload, mask) if mask else payload


def unmasked(payload, mask):
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")


class TurnReader:
    """The turns of a WebSocket, one after the other."""

    def __init__(self, handshake, client_bytes, server_bytes):
        self.handshake, self.client, self.server = handshake, FrameReader(client_bytes), FrameReader(server_bytes)
        self.turns, self.ended, self.events = [], 0, hashlib.sha256()

    def parse(self, make_turn):
        while (message := self.client.read_message()) is not None:
            text, position = message
            if json.loads(text).get("type") == "response.create":
                turn = make_turn(self.client.kept.arrival_time(position), "WEBSOCKET", self.handshake.target, {})
                turn.request_sha256 = hashlib.sha256(text).hexdigest()
                self.turns.append(turn)
        while self.ended < len(self.turns) and (message := self.server.read_message()) is not None:
            self.add_event(self.turns[self.ended], message[0])
        return self.turns

    def add_event(self, turn, text):
        event = json.loads(text)
        self.events.update(text)
        turn.response_bytes += len(text)
        if event["type"] in LAST_EVENTS:
            turn.status = event.get("status", 200)
            # What tells the same turn on both sides of the balancer.
            turn.response_headers = {"apim-request-id": event.get("response", {}).get("id")}
            turn.response_sha256 = self.events.hexdigest()
            self.ended, self.events = self.ended + 1, hashlib.sha256()
