"""`jobs/serve.py`: serve models in this process until a signal, and finish the open answers then."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import uvicorn

from raymill.annotate.database import DATABASE_NAME, Database
from raymill.annotate.listening import address, listen
from raymill.config.serve_checks import LOCAL
from raymill.errors import ConfigError
from raymill.reading import user_path
from raymill.schema.serving import ServeJob
from raymill.serve.app import ServeApplication, create_app
from raymill.serve.feedback import Feedback
from raymill.serve.keys import add_key, read_keys
from raymill.serve.opening import model_names, open_model
from raymill.serve.served_model import ServedModel
from raymill.storage.mirror import pull_newest, push_newest
from raymill.track.ancestry import ancestry
from raymill.track.registry import resolve_model

# After the limit on draining, answers get this time to tell their clients that they ended.
_LAST_WORDS_S = 3


def serve(job: ServeJob) -> int:
    """Serve until SIGINT or SIGTERM, or add an API key. Return the exit code.

    Raises:
        RaymillError: a model can't be found or is damaged, or the address is in use.
    """
    keys_file = None if job.serve.keys is None else user_path(job.serve.keys)
    if job.new_key is not None:
        assert keys_file is not None, "the configuration's checks require serve.keys"
        print(add_key(keys_file, job.new_key))
        return 0
    keys = read_keys(keys_file)
    if job.serve.engine == "ray":
        raise ConfigError(["serve.engine=ray: only local is available yet"])
    # Claimed before models are loaded, so that a wrong host or port fails at once.
    listening = listen(job.host, job.port)
    with ExitStack() as stack:
        stack.callback(listening.close)
        models = {}
        for model in open_models(job):
            stack.callback(model.runner.close)
            models[model.id] = model
        feedback = stack.enter_context(open_feedback(job, models.values()))
        _run(job, create_app(models, job.serve, keys, feedback), listening, models)
    return 0


@contextmanager
def open_feedback(job: ServeJob, models: Iterable[ServedModel]) -> Iterator[Feedback | None]:
    """Open the ranking that takes the page's votes; it is uploaded at the end.

    Raises:
        RaymillError: the folder isn't a ranking's, or the object store can't be reached.
    """
    if job.votes is None:
        yield None
        return
    folder = job.storage.folder / "rankings" / job.votes
    folder.mkdir(parents=True, exist_ok=True)
    pull_newest(job.storage, folder, DATABASE_NAME)
    digests = {version: digest for model in models for version, digest in model.digests.items()}
    try:
        with Database(folder / DATABASE_NAME) as database:
            yield Feedback(database, digests.get)
    finally:
        push_newest(job.storage, folder, DATABASE_NAME)


def open_models(job: ServeJob) -> Iterator[ServedModel]:
    """Load the models, one after the other. Raises RaymillError; see `serve`."""
    root = job.storage.folder
    adapters = {
        name: resolve_model(reference, job.tracking, root, f"adapters.{name}").folder
        for name, reference in job.adapters.items()
    }
    for name, reference in zip(model_names(job.model), job.model, strict=True):
        resolved = resolve_model(reference, job.tracking, root)
        lineage = ancestry(resolved, job.tracking, root)
        yield open_model(name, resolved, lineage, job.serve, adapters)


def _run(
    job: ServeJob,
    app: ServeApplication,
    listening: socket.socket,
    models: dict[str, ServedModel],
) -> None:
    settings = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=int(job.serve.drain_s) + _LAST_WORDS_S,
    )
    served = ", ".join(f"{name} ({model.version})" for name, model in models.items())
    where = address(listening, job.host)

    def announce() -> None:
        print(f"serving {served} at {where}", flush=True)

    if job.host not in LOCAL:
        print("the connection is not encrypted: put a TLS proxy in front of it")
    DrainingServer(settings, app.drain, announce).run(sockets=[listening])


class DrainingServer(uvicorn.Server):
    """Server that lets open requests end after SIGINT or SIGTERM, and returns; a second SIGINT ends at once.

    `drain` is called at the signal, `started` when connections are accepted.
    """

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], None], announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain, self._announce = drain, announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn, which ends the process by the signal afterward; here it ends with exit code 0."""
        before = {
            one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._drain()
        await super().shutdown(sockets)
