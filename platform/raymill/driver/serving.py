"""`jobs/serve.py`: serve models in this process until a signal, and finish the open answers then."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvicorn

from raymill.annotate.database import DATABASE_NAME, Database
from raymill.annotate.listening import address, listen
from raymill.cluster.session import warm_up
from raymill.config.serve_checks import LOCAL
from raymill.schema.serving import ServeJob
from raymill.serve.app import ServeApplication
from raymill.serve.keys import add_key, keys_file, read_keys
from raymill.serve.opening import feedback_on, memory_table, open_models
from raymill.serve.served_model import ServedModel
from raymill.storage.mirror import pull_newest, push_newest

# After the limit on draining, answers get this time to tell their clients that they ended.
_LAST_WORDS_S = 3


def serve(job: ServeJob) -> int:
    """Serve until SIGINT or SIGTERM, or add an API key. Return the exit code.

    Raises:
        RaymillError: a model can't be found or is damaged, or the address is in use.
    """
    file = keys_file(job.serve)
    if job.new_key is not None:
        assert file is not None, "the configuration's checks require serve.keys"
        print(add_key(file, job.new_key))
        return 0
    if job.dry_run:
        print("\n".join(memory_table(job)))
        return 0
    keys = read_keys(file)
    if job.serve.engine == "ray":
        if job.cluster.address == "local":
            # The proxy that will listen there reports an address in use late, and in Ray's log.
            listen(job.host, job.port).close()
        # Before the import, which takes seconds, since Ray reads its settings there.
        warm_up(job.cluster)
        from raymill.serve.ray_app import serve_on_ray

        with kept_votes(job) as votes:
            serve_on_ray(job, keys, votes)
        return 0
    # Claimed before models are loaded, so that a wrong host or port fails at once.
    listening = listen(job.host, job.port)
    with ExitStack() as stack:
        stack.callback(listening.close)
        models = {}
        for model in open_models(job, job.model):
            stack.callback(model.runner.close)
            models[model.id] = model
        votes, feedback = stack.enter_context(kept_votes(job)), None
        if votes is not None:
            database = stack.enter_context(Database(votes))
            feedback = feedback_on(database, models.values())
        _run(job, ServeApplication(models, job.serve, keys, feedback), listening, models)
    return 0


@contextmanager
def kept_votes(job: ServeJob) -> Iterator[Path | None]:
    """Yield the file of the ranking that takes the page's votes; it is uploaded at the end.

    Raises:
        StorageError: the object store can't be reached.
    """
    if job.votes is None:
        yield None
        return
    folder = job.storage.folder / "rankings" / job.votes
    folder.mkdir(parents=True, exist_ok=True)
    pull_newest(job.storage, folder, DATABASE_NAME)
    try:
        yield folder / DATABASE_NAME
    finally:
        push_newest(job.storage, folder, DATABASE_NAME)


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
