"""Checks of template.yaml that no linter knows: that it agrees with the code around it.

Run by infra/check-sam.sh, whose environment has the packages.
"""

import json
import re
import sys
from pathlib import Path

from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).resolve().parent.parent


def names(constant: str) -> list[str]:
    """The strings of a constant in the local server's rules of CORS."""
    source = (ROOT / "shared/transport/server/cors.rs").read_text()
    array = re.search(rf"const {constant}: \[&str; \d+\] =\s*\[(.*?)\]", source, re.S)
    assert array, f"cors.rs has no {constant}"
    return re.findall(r'"([^"]+)"', array.group(1))


def functions(template: dict) -> dict[str, dict]:
    """The functions, by logical id."""
    return {
        name: resource
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }


def mistakes(template: dict) -> list[str]:
    """What does not agree, as sentences."""
    found = []

    cors = template["Mappings"]["Cors"]["Headers"]
    for ours, constant in [("Request", "REQUEST_HEADERS"), ("Response", "RESPONSE_HEADERS")]:
        if sorted(cors[ours]) != sorted(names(constant)):
            found.append(f"Mappings.Cors.Headers.{ours} is not what cors.rs has in {constant}")

    readme = (ROOT / "README.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", readme, re.M))
    everywhere = set(template["Globals"]["Function"]["Environment"]["Variables"])
    for name, function in functions(template).items():
        own = set(function["Properties"].get("Environment", {}).get("Variables", {}))
        for variable in sorted((own | everywhere) - documented):
            # Settings of the runtime, not ours.
            if not variable.startswith("AWS_LAMBDA_"):
                found.append(f"{name} sets {variable}, which the README does not have")

        folder = function["Properties"]["CodeUri"]
        binary = function["Metadata"]["BuildProperties"]["Binary"]
        if folder != f"functions/{binary}" or not (ROOT / folder / "Cargo.toml").is_file():
            found.append(f"{name} is built from {folder}, where there is no package {binary}")

        # An alarm on nine tenths of the timeout.
        slow = template["Resources"][name.removesuffix("Function") + "Slow"]["Properties"]["Threshold"]
        timeout = function["Properties"]["Timeout"]
        if slow != timeout * 900:
            found.append(f"the alarm on slow calls of {name} is at {slow} ms, its timeout at {timeout} s")

    # The table that is deployed is the one that the tests use.
    deployed = template["Resources"]["ConversationsTable"]["Properties"]
    tested = json.loads((ROOT / "infra/dynamodb-table.json").read_text())
    for part in sorted(tested.keys() - {"TableName", "StreamSpecification"}):
        if deployed.get(part) != tested[part]:
            found.append(f"ConversationsTable.{part} is not that of infra/dynamodb-table.json")
    if deployed["StreamSpecification"]["StreamViewType"] != tested["StreamSpecification"]["StreamViewType"]:
        found.append("ConversationsTable has another stream than infra/dynamodb-table.json")
    keys = (ROOT / "shared/conversation/dynamodb/keys.rs").read_text()
    expiry = re.search(r'const EXPIRES: &str = "(\w+)"', keys)
    if not expiry or deployed["TimeToLiveSpecification"]["AttributeName"] != expiry.group(1):
        found.append("ConversationsTable expires by another attribute than keys.rs has in EXPIRES")

    # Which kinds of writes are in a transaction depends on what there is, and what stands in for DynamoDB asks for no rights.
    for name, role in template["Resources"].items():
        if role["Type"] == "AWS::IAM::Role" and "dynamodb:DeleteItem" in str(role):
            if "dynamodb:ConditionCheckItem" not in str(role):
                found.append(f"{name} may write transactions without their checks")

    for guide in sorted((ROOT / "infra").glob("README*.md")):
        explained = set(re.findall(r"^\| `([A-Z][a-z][A-Za-z]*)` \|", guide.read_text(), re.M))
        for parameter in sorted(set(template["Parameters"]) ^ explained):
            found.append(f"{guide.name} and the template do not agree on the parameter {parameter}")

    return found


def main() -> int:
    template = cfn_yaml.load(str(ROOT / "template.yaml"))
    found = mistakes(template)
    for mistake in found:
        print(f"error: template.yaml: {mistake}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
