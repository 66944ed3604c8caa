"""What every agent in Python needs: the handshake, the service, the stream of events, bodies in chunks.

See docs/protocol.md for what each part is for.
"""

import os
import queue
import signal
import sys
import tempfile
import threading
import traceback
from concurrent import futures

import grpc

import agent_pb2 as pb

COOKIE = "b7c1d0f2-agent"
PROTOCOL = 1


class Agent:
    """Subclass it: describe, validate, configure, and a method for each event subscribed ("on_rcpt")."""

    bodies = None

    def body(self, event):
        """The whole body of the event, wherever it comes from."""
        if not event.body.ticket:
            return event.body.inline
        return self.bodies.wait(event.body.ticket)


def proceed(reason="", data=""):
    """Continue, the explicit way."""
    return pb.Answer(verdicts=[pb.Verdict(kind=pb.VERDICT_KIND_CONTINUE, reason=reason, data=data)])


def reject(code, enhanced, text, reason="", data=""):
    """Refuse for good."""
    return pb.Answer(verdicts=[pb.Verdict(
        kind=pb.VERDICT_KIND_REJECT, reply=pb.Reply(code=code, enhanced=enhanced, text=text), reason=reason, data=data)])


class Bodies:
    """Collects the chunks of bodies by ticket and gives credit as they come."""

    def __init__(self):
        self.changed = threading.Condition()
        self.parts, self.whole = {}, {}
        self.out = queue.Queue()

    def take(self, frame):
        with self.changed:
            self.parts.setdefault(frame.ticket, []).append(frame.chunk.data)
            if frame.chunk.last:
                self.whole[frame.ticket] = b"".join(self.parts.pop(frame.ticket))
                self.changed.notify_all()
        if not frame.chunk.last and frame.chunk.data:
            self.out.put(pb.BodiesResponse(ticket=frame.ticket, credit=len(frame.chunk.data)))

    def wait(self, ticket):
        with self.changed:
            self.changed.wait_for(lambda: ticket in self.whole)
            return self.whole.pop(ticket)


class Service:
    """postern.agent.v1.AgentService."""

    def __init__(self, agent):
        self.agent = agent
        self.agent.bodies = self.bodies = Bodies()
        self.pool = futures.ThreadPoolExecutor(max_workers=32)
        self.in_flight = 0
        self.idle = threading.Condition()

    def describe(self, request, context):
        return self.agent.describe()

    def validate(self, request, context):
        return pb.ValidateResponse(diagnostics=self.agent.validate(request.config))

    def configure(self, request, context):
        found = self.agent.validate(request.config)
        if found:
            return pb.ConfigureResponse(diagnostics=found)
        return pb.ConfigureResponse(subscriptions=self.agent.configure(request))

    def drain(self, request, context):
        with self.idle:
            self.idle.wait_for(lambda: self.in_flight == 0)
        return pb.DrainResponse()

    def events(self, requests, context):
        out = queue.Queue()

        def read():
            try:
                for request in requests:
                    if request.HasField("ping"):  # ahead of all handlers
                        out.put(pb.EventsResponse(pong=pb.Pong(nonce=request.ping.nonce, in_flight=self.in_flight)))
                    for event in request.events:
                        with self.idle:
                            self.in_flight += 1
                        self.pool.submit(self.answer, event, out)
            except grpc.RpcError:
                pass  # the host has ended the stream
            out.put(None)

        threading.Thread(target=read, daemon=True).start()
        return iter(out.get, None)

    def answer(self, event, out):
        name = "on_" + pb.EventKind.Name(event.kind)[len("EVENT_KIND_"):].lower()
        try:
            answer = getattr(self.agent, name)(event)
        except Exception as e:  # a fault of this event, not of the process
            traceback.print_exc()
            answer = pb.Answer(fault=f"{type(e).__name__}: {e}")
        answer.id = event.id
        out.put(pb.EventsResponse(answers=[answer]))
        with self.idle:
            self.in_flight -= 1
            self.idle.notify_all()

    def bodies_stream(self, requests, context):
        def read():
            try:
                for frame in requests:
                    self.bodies.take(frame)
            except grpc.RpcError:
                pass
            self.bodies.out.put(None)

        threading.Thread(target=read, daemon=True).start()
        return iter(self.bodies.out.get, None)

    def handlers(self):
        def one(method, request, response):
            return grpc.unary_unary_rpc_method_handler(method, request.FromString, response.SerializeToString)

        def stream(method, request, response):
            return grpc.stream_stream_rpc_method_handler(method, request.FromString, response.SerializeToString)

        return grpc.method_handlers_generic_handler("postern.agent.v1.AgentService", {
            "Describe": one(self.describe, pb.DescribeRequest, pb.DescribeResponse),
            "Validate": one(self.validate, pb.ValidateRequest, pb.ValidateResponse),
            "Configure": one(self.configure, pb.ConfigureRequest, pb.ConfigureResponse),
            "Drain": one(self.drain, pb.DrainRequest, pb.DrainResponse),
            "Events": stream(self.events, pb.EventsRequest, pb.EventsResponse),
            "Bodies": stream(self.bodies_stream, pb.BodiesRequest, pb.BodiesResponse),
        })


class Launch(grpc.ServerInterceptor):
    """Refuses whoever does not know the token of this launch."""

    def __init__(self, token):
        self.token = token
        self.refuse = grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "the launch token is missing"))

    def intercept_service(self, continuation, details):
        ours = details.method.startswith("/postern.")
        if ours and ("postern-token", self.token) not in details.invocation_metadata:
            return self.refuse
        return continuation(details)


def plumbing(stop):
    """The services of go-plugin: health, and the controller that ends the process."""
    def shutdown(request, context):
        threading.Timer(0.1, stop.set).start()
        return b""

    raw = {"request_deserializer": None, "response_serializer": None}
    serving = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse{status: SERVING}
    return (
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", {
            "Check": grpc.unary_unary_rpc_method_handler(lambda request, context: serving, **raw)}),
        grpc.method_handlers_generic_handler("plugin.GRPCController", {
            "Shutdown": grpc.unary_unary_rpc_method_handler(shutdown, **raw)}),
    )


def watch_lifeline():
    """Ends the process when the host is gone."""
    fd = os.environ.get("POSTERN_LIFELINE_FD")
    if fd is None:
        return

    def wait():
        while os.read(int(fd), 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def main(agent):
    if os.environ.get("POSTERN_AGENT") != COOKIE:
        sys.exit("This is an agent of Postern: the host starts it. Name it in an agent block of config.hcl.")
    if str(PROTOCOL) not in os.environ["PLUGIN_PROTOCOL_VERSIONS"].split(","):
        sys.exit(f"this agent speaks protocol {PROTOCOL}, the host {os.environ['PLUGIN_PROTOCOL_VERSIONS']}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch_lifeline()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=16),
        interceptors=(Launch(os.environ.get("POSTERN_TOKEN", "")),),
        options=[("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20)],
    )
    server.add_generic_rpc_handlers((Service(agent).handlers(),) + plumbing(stop))
    folder = os.environ.get("PLUGIN_UNIX_SOCKET_DIR") or tempfile.mkdtemp()
    path = os.path.join(folder, "agent.sock")
    server.add_insecure_port("unix:" + path)
    server.start()
    print(f"1|{PROTOCOL}|unix|{path}|grpc|", flush=True)
    stop.wait()
    server.stop(1).wait()
