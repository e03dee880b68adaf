"""`python -m data_pipeline.explorer 'runs=[data/cc10]'`: a page and an API on runs that have an index; see `--help`."""

import importlib.util
import logging
import socket

from omegaconf import DictConfig

from crawl2clip.config import command
from crawl2clip.errors import ConfigError
from data_pipeline.explorer.config import ExplorerConfig
from data_pipeline.index_faiss import require_faiss

logger = logging.getLogger(__name__)


def run(config: ExplorerConfig, _: DictConfig) -> None:
    """Opens the runs, says where the page is, serves it until it is stopped."""
    require_faiss()
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the explorer needs the package {package}, which is not installed; pip install -e '.[data,explorer]'"
            )
    import uvicorn

    from data_pipeline.explorer.engine import Explorer
    from data_pipeline.explorer.service import make_service

    explorer = Explorer(config)
    for each in explorer.library.runs:
        for modality, found in each.record.items():
            logger.info(
                "%s: %s vectors of %ss, %s, recall@10 %.3f",
                each.folder, f"{found['vectors']:,}", modality, found["kind"], found["recall_at_10"],
            )  # fmt: skip
    listening = listen(config.host, config.port)
    host = f"[{config.host}]" if ":" in config.host else config.host
    # The one line of output, once the page can be opened; a program that starts the explorer reads the port from it.
    print(f"explorer: http://{host}:{listening.getsockname()[1]}/", flush=True)
    server = uvicorn.Server(
        uvicorn.Config(make_service(config, explorer), log_config=None, log_level="warning", access_log=False,
                       server_header=False, limit_concurrency=1000, timeout_keep_alive=15)
    )  # fmt: skip
    server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port in use is told before anything else.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        raise ConfigError(
            f"the explorer cannot listen on {host} port {port} ({error}); give another port, or port=0 for a free one"
        ) from error
    made.listen(128)
    return made


if __name__ == "__main__":
    command("explorer", ExplorerConfig, run)
