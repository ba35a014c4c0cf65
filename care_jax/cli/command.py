"""What the commands share: adding a subcommand, checks of options, and who answers: an endpoint or a model here."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from care_jax.errors import UserError
from care_jax.evaluation.endpoint.client import Endpoint
from care_jax.evaluation.endpoint.transport import check_url, only_model

if TYPE_CHECKING:
    from care_jax.evaluation.answers.answerers import Answerer

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Answerer = object  # its module loads numpy
    Subparsers = argparse._SubParsersAction


def command(
    commands: Subparsers, name: str, run: Callable[[argparse.Namespace], int], summary: str, more: str = ""
) -> argparse.ArgumentParser:
    """Adds the subcommand `name`. run: takes the parsed arguments and returns the exit status."""
    parser = commands.add_parser(
        name,
        allow_abbrev=False,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command that calls an endpoint."""
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="calls that run at once (default: 16)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds per call (default: 60)")
    parser.add_argument("--retries", type=int, default=5, metavar="N", help="retries of a failed call (default: 5)")
    parser.add_argument("--requests-per-minute", type=float, metavar="N", help="calls started per minute at most")


def add_model_options(parser: argparse.ArgumentParser, chat_template: str | None = "model") -> None:
    """Adds the options of a command that loads a model. chat_template: the default; None depends on the method."""
    default = chat_template or "model; for log-probabilities: none"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument(
        "--chat-template", default=chat_template, metavar="T",
        help=f"model (the tokenizer's own), none, or a jinja file (default: {default})",
    )  # fmt: skip
    parser.add_argument("--template-date", metavar="DATE", help="YYYY-MM-DD, for a template that asks for today's date")


def add_sampling_options(parser: argparse.ArgumentParser, temperature: str, max_tokens: int | None) -> None:
    """Adds the options of how answers are sampled. temperature: its default, in words. max_tokens: None, the task's."""
    option = parser.add_argument
    option("--temperature", type=float, metavar="T", help=f"0 is greedy (default: {temperature})")
    option("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling (default: 1)")
    most = max_tokens or "the task's"
    option("--max-tokens", type=int, default=max_tokens, metavar="N", help=f"tokens per answer (default: {most})")
    option("--n", type=int, default=1, metavar="N", help="answers per question (default: 1)")
    option("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")


def check_minimum(*options: tuple[str, int | float | None, int | float]) -> None:
    """Raises UserError if the value of an option (name, value, minimum) is below its minimum."""
    for option, value, minimum in options:
        if value is not None and not value >= minimum:
            raise UserError(f"{option}: found {value}, expected at least {minimum:g}")


def check_picture(path: str | None) -> None:
    """Raises UserError if the file of --plot does not have the suffix of a picture."""
    if path is not None and not path.lower().endswith((".png", ".pdf", ".svg")):
        raise UserError(f"--plot: found {path!r}, expected a file ending in .png, .pdf, .svg")


def open_endpoint(arguments: argparse.Namespace, model: str | None) -> Endpoint:
    """Returns the endpoint of --base-url with the named model, or else with the only model that it serves."""
    check_minimum(
        ("--concurrency", arguments.concurrency, 1),
        ("--retries", arguments.retries, 0),
        ("--timeout", arguments.timeout, 1e-3),
        ("--requests-per-minute", arguments.requests_per_minute, 1e-3),
    )
    url = check_url(arguments.base_url)
    return Endpoint(
        url, model or only_model(url), arguments.timeout, arguments.retries, arguments.concurrency,
        arguments.requests_per_minute,
    )  # fmt: skip


def open_answerer(arguments: argparse.Namespace) -> Answerer:
    """Returns who answers in `evaluate` and `generate`: the endpoint of --base-url, or else the model of --model."""
    from care_jax.evaluation.answers.answerers import EndpointAnswerer, ModelAnswerer

    if arguments.base_url is not None:
        return EndpointAnswerer(open_endpoint(arguments, arguments.model))
    return ModelAnswerer(arguments.model, arguments.dtype)


def check_sampling(arguments: argparse.Namespace) -> None:
    """Raises UserError if an option of sampling, in `evaluate` and `generate`, is out of its range."""
    check_minimum(("--n", arguments.n, 1), ("--limit", arguments.limit, 1))
    check_minimum(("--max-tokens", arguments.max_tokens, 1), ("--temperature", arguments.temperature, 0))
    if arguments.temperature == float("inf"):
        raise UserError("--temperature: found inf, expected a finite number")
    if not 0 < arguments.top_p <= 1:
        raise UserError(f"--top-p: found {arguments.top_p}, expected above 0 and at most 1")
