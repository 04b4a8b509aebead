"""Checks that template.yaml agrees with the code and the documentation. Run by infra/check-sam.sh, which installs its packages."""

import json
import re
import sys
import tomllib
from pathlib import Path

from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).resolve().parent.parent


def cors_constant(constant: str) -> list[str]:
    """Reads a list of header names from the server's CORS rules."""
    source = (ROOT / "shared/transport/server/cors.rs").read_text()
    array = re.search(rf"const {constant}: \[&str; \d+\] =\s*\[(.*?)\]", source, re.S)
    assert array, f"cors.rs has no {constant}"
    return re.findall(r'"([^"]+)"', array.group(1))


def functions(template: dict) -> dict[str, dict]:
    """Returns the functions by logical id."""
    return {
        name: resource
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }


def inconsistencies(template: dict) -> list[str]:
    errors = []

    cors = template["Mappings"]["Cors"]["Headers"]
    for direction, constant in [("Request", "REQUEST_HEADERS"), ("Response", "RESPONSE_HEADERS")]:
        if sorted(cors[direction]) != sorted(cors_constant(constant)):
            errors.append(f"Mappings.Cors.Headers.{direction} differs from {constant} in cors.rs")

    reference = "docs/reference/configuration.md"
    documented = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", (ROOT / reference).read_text(), re.M))
    global_variables = set(template["Globals"]["Function"]["Environment"]["Variables"])
    for name, function in functions(template).items():
        own = set(function["Properties"].get("Environment", {}).get("Variables", {}))
        for variable in sorted((own | global_variables) - documented):
            # These configure the Lambda runtime, not the service.
            if not variable.startswith("AWS_LAMBDA_"):
                errors.append(f"{name} sets {variable}, which {reference} does not document")

        folder = function["Properties"]["CodeUri"]
        binary = function["Metadata"]["BuildProperties"]["Binary"]
        if folder != f"functions/{binary}" or not (ROOT / folder / "Cargo.toml").is_file():
            errors.append(f"{name} is built from {folder}, which has no package {binary}")

        # The latency alarm fires at 90 % of the timeout.
        threshold = template["Resources"][name.removesuffix("Function") + "Slow"]["Properties"]["Threshold"]
        timeout = function["Properties"]["Timeout"]
        if threshold != timeout * 900:
            errors.append(f"the latency alarm of {name} is at {threshold} ms; expected {timeout * 900} ms, 90 % of its timeout")

    # The tests use the same table definition.
    deployed = template["Resources"]["ConversationsTable"]["Properties"]
    tested = json.loads((ROOT / "infra/dynamodb-table.json").read_text())
    for part in sorted(tested.keys() - {"TableName", "StreamSpecification"}):
        if deployed.get(part) != tested[part]:
            errors.append(f"ConversationsTable.{part} differs from infra/dynamodb-table.json")
    if deployed["StreamSpecification"]["StreamViewType"] != tested["StreamSpecification"]["StreamViewType"]:
        errors.append("ConversationsTable.StreamSpecification differs from infra/dynamodb-table.json")
    keys = (ROOT / "shared/conversation/dynamodb/keys.rs").read_text()
    expiry = re.search(r'const EXPIRES_AT: &str = "(\w+)"', keys)
    if not expiry or deployed["TimeToLiveSpecification"]["AttributeName"] != expiry.group(1):
        errors.append("ConversationsTable.TimeToLiveSpecification differs from EXPIRES_AT in keys.rs")

    # Transactions contain condition checks only in some states, and the emulator checks no permissions, so no test would notice.
    for name, role in template["Resources"].items():
        if role["Type"] == "AWS::IAM::Role" and "dynamodb:DeleteItem" in str(role):
            if "dynamodb:ConditionCheckItem" not in str(role):
                errors.append(f"{name} allows writes without dynamodb:ConditionCheckItem")

    # CloudFormation applies the rule OriginsAreListedWithoutAuth only at the deployment.
    for stage, settings in tomllib.loads((ROOT / "samconfig.toml").read_text()).items():
        overrides = settings.get("deploy", {}).get("parameters", {}).get("parameter_overrides", []) if isinstance(settings, dict) else []
        if "Auth=none" in overrides and not any(re.match(r"AllowedOrigins=[^*]+$", override) for override in overrides):
            errors.append(f"stage {stage} of samconfig.toml has Auth=none and does not list its origins")

    for guide in "docs/how-to/deploy-aws.md", "docs/zh/deploy-aws.md":
        documented_parameters = set(re.findall(r"^\| `([A-Z][a-z][A-Za-z]*)` \|", (ROOT / guide).read_text(), re.M))
        for parameter in sorted(set(template["Parameters"]) ^ documented_parameters):
            errors.append(f"parameter {parameter} is missing in either {guide} or the template")

    return errors


def main() -> int:
    template = cfn_yaml.load(str(ROOT / "template.yaml"))
    errors = inconsistencies(template)
    for error in errors:
        print(f"error: template.yaml: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
