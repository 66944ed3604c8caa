#!/usr/bin/env python3
"""An agent in Python: it marks the subject of messages whose body holds a word, and refuses some recipients.

It is written from sdk/agentpb/postern/agent/v1/agent.proto and docs/protocol.md alone, with the grpcio and
protobuf packages of the distribution. `make` in this folder generates agent_pb2.py with protoc; serve.py has
what every agent in Python needs, this file is the agent itself.

    agent "tagger" {
      priority = 60
      command  = ["/usr/bin/python3", "examples/python/agent.py"]
      config {
        words = ["lottery"]
      }
    }
"""

import json

import agent_pb2 as pb
import serve


class Tagger(serve.Agent):
    """One configuration's agent. A handler gets an event and answers with a pb.Answer."""

    def describe(self):
        attribute = pb.SchemaAttribute
        return pb.DescribeResponse(
            name="tagger",
            version="1.0.0",
            category=pb.CATEGORY_POLICY,
            summary="marks subjects, refuses recipients (an example in Python)",
            capabilities=pb.Capabilities(live_configure=True),
            schema=pb.Schema(root=pb.SchemaBlock(attributes=[
                attribute(name="tag", type='"string"', default_json='"[word]"', doc="put in front of the subject"),
                attribute(name="words", type='["list","string"]', default_json="[]", doc="words to look for in the body"),
                attribute(name="refused", type='["list","string"]', default_json="[]", format=pb.FORMAT_MAILBOX,
                          doc="recipients to refuse"),
            ])),
            sdk="python-example",
        )

    def validate(self, config):
        values = json.loads(config)
        return [
            pb.Diagnostic(summary="an empty word is in every message",
                          path=[pb.PathStep(name="words"), pb.PathStep(index=i)])
            for i, word in enumerate(values["words"]) if not word
        ]

    def configure(self, request):
        values = json.loads(request.config)
        self.tag = values["tag"].encode()
        self.words = [w.lower().encode() for w in values["words"]]
        self.refused = {a.lower().encode() for a in values["refused"]}
        return [
            pb.Subscription(event=pb.EVENT_KIND_RCPT, may_change=pb.Changes(verdict=True)),
            pb.Subscription(
                event=pb.EVENT_KIND_END_OF_DATA,
                headers=pb.HeaderNeed(names=["Subject"]),
                body=pb.BodyNeed(mode=pb.BODY_MODE_WHOLE),
                may_change=pb.Changes(headers=True, stamps=["word"]),
            ),
        ]

    def on_rcpt(self, event):
        address = event.arguments.rcpt.recipient.address
        if address.lower() in self.refused:
            return serve.reject(550, "5.7.1", "Recipient is refused by the example in Python", "refused", address.decode())
        return serve.proceed()

    def on_end_of_data(self, event):
        body = self.body(event).lower()
        found = next((w for w in self.words if w in body), None)
        if found is None:
            return serve.proceed()
        answer = serve.proceed("word", found.decode())
        answer.stamps.add(name="word", scope=pb.SCOPE_MESSAGE, value=found)
        subject = next((h for h in event.headers if h.name.lower() == b"subject"), None)
        if subject is None:
            answer.edits.add(add_header=pb.AddHeader(name=b"Subject", value=self.tag))
        else:
            answer.edits.add(replace_header=pb.ReplaceHeader(
                index=subject.index, name=subject.name, value=b" " + self.tag + subject.value))
        return answer


if __name__ == "__main__":
    serve.main(Tagger())
