"""The command ``cisskit``: runs, tables, pages, facts about data and published numbers."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from cisskit import __version__
from cisskit.errors import KitError, unknown
from cisskit.protocols import PROTOCOLS
from cisskit.scenario import DATASETS, SETTINGS, Scenario

EXAMPLES = {
    "toy-5-2": "the embedded scenes, the default: 5 + 2 + 2 of 9 classes",
    "toy-5-1": "the scenes in five steps",
    "voc-19-1": "the VOC tasks of the papers, alphabetical order",
    "voc-15-5": "",
    "voc-15-1": "",
    "voc-10-1": "",
    "voc-5-3": "",
    "voc-15-1_b": "a published order of the classes (b to w)",
    "ade-100-50": "ADE20K",
    "ade-100-10": "",
    "isprs-4-1": "Potsdam or Vaihingen, with a true background",
    "isprs-2-2-1": "three or more numbers are the sizes of all groups",
    "isprs_compat-2-2-1": "as published: impervious surface is class 0, lists shifted",
    "camvid-7-2": "every pixel belongs to a class",
    "voc:person,chair/horse,cow": "groups of classes, any subset in any order",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 all well, 1 something failed, 2 the request cannot be carried out.

    Ctrl-C ends the process with 130.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return args.command(args)
    except KitError as error:
        print(f"cisskit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncisskit: stopped; run the same command again to continue.", file=sys.stderr, flush=True)
        os._exit(130)  # a normal exit would wait for the notebooks at work; their kernels end with this process, files stay whole


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cisskit", description="Class-incremental semantic segmentation, notebook first.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(command=function)
        return sub

    run = command("run", _run, "Execute the notebooks of one or more methods, step by step, and write a report.")
    _run_arguments(run, scenario=None, method=None)
    demo = command("demo", _run, "The main job: joint, ft, mib and dkd on the embedded scenes.")
    _run_arguments(demo, scenario="toy-5-2", method="joint,ft,mib,dkd")

    bench = command(
        "benchmark", _benchmark, "Every method and every ablation on the scenes, into notebooks/RESULTS.md. Resumable."
    )
    bench.add_argument("--seed", default="0,1,2", help="seeds of the tables, separated by commas")
    bench.add_argument("--ablation-seed", default="0", help="seeds of the ablations, separated by commas")
    bench.add_argument("--runs", default="runs/benchmark", help="folder for the runs")
    bench.add_argument("--out", default="", help="where RESULTS.md and results.csv go; by default the notebooks folder")
    bench.add_argument("--jobs", type=int, default=0, help="processes side by side; 0: one per core")

    report = command("report", _report, "Make report.html from finished runs.")
    report.add_argument("folder", nargs="?", default="runs", help="a runs folder, or a part of one")

    dashboard = command("dashboard", _dashboard, "Make one page over a folder of runs: masks, forgetting, pseudo-labels, shift.")
    dashboard.add_argument("folder", nargs="?", default="runs", help="a runs folder")
    dashboard.add_argument("--data-root", default="", help="folder of the images, if it has moved since the runs were made")
    dashboard.add_argument("--open", action="store_true", help="show the page in the browser")

    published = command("published", _published, "Print published numbers: those with all the values asked for.")
    for name in ("method", "dataset", "task", "setting", "metric", "classes", "backbone", "memory"):
        published.add_argument(f"--{name}", help={"classes": "e.g. 0-15", "metric": "e.g. old, all, hIoU"}.get(name))
    compare = command("compare", _compare, "Put a run beside the published numbers of its task, and say which may be compared.")
    compare.add_argument("folder", help="folder of one finished step, e.g. runs/voc-15-1-overlap-dkd/dkd/seed0/step5")

    data = command("data", _data, "Describe a data set: images and pixels per class, classes together, sizes, a contact sheet.")
    data.add_argument("action", choices=["describe"])
    data.add_argument("name", help="toy, voc, ade, isprs, camvid or folder")
    data.add_argument("--root", default="", help="folder of the data set (the scenes need none)")
    data.add_argument("--out", default="", help="also write the card here: card.json, classes.csv and pictures")
    data.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="an option of the data set")

    gallery = command("gallery", _gallery, "Execute all notebooks on a folder of runs and lay out every picture on one page.")
    gallery.add_argument("folder", nargs="?", default="runs", help="a runs folder")
    gallery.add_argument("--out", default="gallery", help="where the page goes")
    gallery.add_argument("--readme", action="store_true", help="only draw the four pictures of the README anew")

    command("methods", _methods, "List the methods and their fields.")
    command("scenarios", _scenarios, "List data sets, example scenarios and settings.")

    doctor = command("doctor", _doctor, "Check this machine and say how to mend what is wrong.")
    doctor.add_argument("--voc", metavar="DIR", help="also check a Pascal VOC folder")
    doctor.add_argument("--runs", default="runs", help="where runs go (free space)")
    return parser


def _run_arguments(parser: argparse.ArgumentParser, *, scenario: str | None, method: str | None) -> None:
    add = parser.add_argument
    add("--scenario", required=scenario is None, default=scenario, help="e.g. toy-5-2, voc-15-1 or voc:person,chair/horse,cow")
    add("--method", required=method is None, default=method, help="ids separated by commas, e.g. mib,dkd-m, or 'all'")
    add("--setting", default="overlap", choices=SETTINGS, help="which images a step sees and what they tell")
    add("--seed", default="0", help="one or more seeds separated by commas")
    add(
        "--set",
        action="append",
        default=[],
        metavar="[METHOD.]FIELD=VALUE",
        help="change a field of a method or its recipe (step0.FIELD, later.FIELD: of some steps); data.FIELD: of the data set",
    )
    add("--runs", default="runs", help="folder for the runs")
    add("--data-root", default="", help="folder of the data set (the scenes need none)")
    add("--arch", default="", help="network; by default the paper's, on the scenes a small one of its kind")
    add("--weights", default="imagenet", help="backbone weights: imagenet, none, or a state-dict file")
    add("--protocol", default="clean", choices=PROTOCOLS, help="whose conventions score the result")
    add("--eval-size", default="", help="full, or cropN: shorter side N and centre crop; by default the protocol's")
    add("--device", default="", help="cpu, cuda, cuda:1; by default the GPU when there is one")
    add("--jobs", type=int, default=0, help="notebooks side by side; 0: one per core on a CPU, one on a GPU")


def _run(args: argparse.Namespace) -> int:
    from cisskit.method import available
    from cisskit.pipeline import chains, default_jobs, make_report, run_chains
    from cisskit.runs import find_runs
    from cisskit.views.tables import protocol, results

    methods = available() if args.method == "all" else [m.strip() for m in args.method.split(",") if m.strip()]
    seeds = [_integer(word, "--seed") for word in str(args.seed).split(",")]
    jobs = args.jobs or default_jobs(args.device)
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per process: more of them fight for the cores
    overrides = _overrides(args.set, methods)
    todo = chains(
        args.scenario, methods, seeds, overrides, setting=args.setting, runs=str(Path(args.runs).resolve()), device=args.device,
        data_root=_whole(args.data_root), data_options=overrides.get("data", {}), arch=args.arch, protocol=args.protocol,
        eval_size=args.eval_size,        weights=args.weights if args.weights in ("imagenet", "none") else _whole(args.weights),
    )  # fmt: skip
    scenario = todo[0].scenario
    steps = sum(chain.steps for chain in todo)
    print(
        f"{scenario.name} {scenario.setting}: {steps} notebooks, {min(jobs, len(todo))} at a time, into {args.runs}/", flush=True
    )
    well = run_chains(todo, jobs, say=lambda text: print(text, flush=True))
    runs = [run for chain in todo for run in find_runs(chain.folder.parent)]
    if runs:
        print(f"\n{results(runs).to_string(index=False)}\n\n{fill(protocol(runs), 120)}\n")
        print(f"report: {make_report(todo[0].folder.parents[2], runs)}")
    for chain in todo:
        if chain.error:
            print(f"failed, see above: {chain.method} seed {chain.parameters['seed']} step {chain.next}", file=sys.stderr)
    return 0 if well else 1


def _benchmark(args: argparse.Namespace) -> int:
    from cisskit import benchmark
    from cisskit.pipeline import NOTEBOOKS, default_jobs

    seeds, ablation_seeds = ([_integer(word, "--seed") for word in text.split(",")] for text in (args.seed, args.ablation_seed))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    jobs = args.jobs or default_jobs("cpu")
    well = benchmark.run(Path(args.runs), seeds, ablation_seeds, jobs, say=lambda text: print(text, flush=True))
    print(f"results: {benchmark.write(Path(args.runs), Path(args.out) if args.out else NOTEBOOKS)}")
    return 0 if well else 1


def _report(args: argparse.Namespace) -> int:
    from cisskit.pipeline import make_report
    from cisskit.runs import find_runs
    from cisskit.views.tables import protocol, results

    runs = find_runs(args.folder)
    if not runs:
        raise KitError(f"no finished runs under {args.folder}. Make some first: cisskit demo.")
    scenarios = {run.folder.parents[2] for run in runs}
    for folder in sorted(scenarios):
        part = [run for run in runs if run.folder.parents[2] == folder]
        table = results(part).to_string(index=False)
        print(f"{folder}\n{table}\n\n{fill(protocol(part), 120)}\nreport: {make_report(folder, part)}\n")
    return 0


def _dashboard(args: argparse.Namespace) -> int:
    import webbrowser

    from cisskit.dashboard import build

    page = build(args.folder, data_root=_whole(args.data_root), say=lambda text: print(text, flush=True))
    print(f"dashboard: {page} (opens from disk, without a server)")
    if args.open and not webbrowser.open(page.resolve().as_uri()):
        print("no browser was found; open the file yourself", file=sys.stderr)
    return 0


def _published(args: argparse.Namespace) -> int:
    from cisskit.published import rows

    asked = {name: value for name, value in vars(args).items() if name != "command"}
    columns = ["method", "year", "backbone", "dataset", "task", "setting", "memory", "metric", "value", "protocol", "source"]
    print(rows(**asked)[columns].to_string(index=False))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from cisskit.published import compare
    from cisskit.runs import Run

    found = compare(Run.load(args.folder))
    print(fill(found.text, 120))
    for title, table in (("matching", found.matching), ("the same classes by other rules", found.other_rules)):
        if len(table):
            print(f"\n{title}\n{table.to_string(index=False)}")
    if len(found.left_out):
        print(f"\nleft out\n{found.left_out['why'].value_counts().to_string(header=False)}")
    return 0


def _data(args: argparse.Namespace) -> int:
    from cisskit.views.card import describe

    options = _overrides([f"data.{setting}" for setting in args.set], ()).get("data", {})
    print(describe(args.name, args.root or None, args.out, options))
    return 0


def _gallery(args: argparse.Namespace) -> int:
    from cisskit.gallery import build, readme

    if args.readme:
        print(*readme(Path(args.folder)), sep="\n")
        return 0
    print(f"gallery: {build(Path(args.folder), Path(args.out), say=lambda text: print(text, flush=True))}")
    return 0


def _methods(args: argparse.Namespace) -> int:
    from cisskit.method import methods_table

    for row in methods_table():
        print(f"{row['id']:<8} {row['name']:<6} {row['year'] or '-':<5} {row['paper']}")
        for name in ("architecture", "memory", "modes", "variants", "fields"):
            if row[name]:
                print(f"{'':<16}{name + ':':<14} {row[name]}")
    return 0


def _scenarios(args: argparse.Namespace) -> int:
    print("data sets:", ", ".join(f"{name} ({len(labels.names)} classes)" for name, labels in DATASETS.items()))
    print("            and folder: your own images, labels and classes.txt, e.g. --scenario folder-3-1 --data-root MINE")
    print("settings: ", ", ".join(SETTINGS))
    for name, rules in PROTOCOLS.items():
        print(f"  protocol {name:<6} {rules.source}")
    for text, remark in EXAMPLES.items():
        scenario = Scenario.named(text)
        print(
            f"  {text:<28} {len(scenario.steps):>2} steps: {' + '.join(str(s.n_new) for s in scenario.steps)}  {remark}".rstrip()
        )
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from cisskit.doctor import checks, report

    found = checks({"voc": Path(args.voc)} if args.voc else None, Path(args.runs))
    print(report(found))
    return 1 if any(check.ok is False for check in found) else 0


def _overrides(settings: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["dkd.lambda_kd=5", "later.epochs=1"]`` -> ``{"dkd": {"lambda_kd": 5}, "": {"later.epochs": 1}}``."""
    from cisskit.method import WHEN

    overrides: dict[str, dict[str, Any]] = {}
    for setting in settings:
        left, equals, right = setting.partition("=")
        owner, dot, field = left.partition(".")
        if not dot or owner in WHEN:
            owner, field = "", left
        if not equals or not field:
            raise KitError(f"--set {setting!r} is not of the form METHOD.FIELD=VALUE or FIELD=VALUE, e.g. dkd.lambda_kd=5.")
        if owner and owner not in (*methods, "data"):
            raise unknown("method in --set", owner, [*methods, "data"])
        try:
            value = json.loads(right)
        except ValueError:
            value = right
        overrides.setdefault(owner, {})[field] = value
    return overrides


def _whole(path: str) -> str:
    """An absolute path, for notebooks that run elsewhere; "" stays."""
    return str(Path(path).resolve()) if path else ""


def _integer(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise KitError(f"{option} takes whole numbers separated by commas, not {text!r}.") from error
