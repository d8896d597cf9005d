"""build_and_push.sh with the real Docker engine and AWS CLI, against a local substitute for ECR."""

import contextlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading

import pytest

from conftest import ROOT
from ecr.stand_in import ACCOUNT, HOSTS, stand_in

SCRIPT = ROOT / "build_and_push.sh"
REGISTRY, REGISTRY_IN_CHINA = HOSTS
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LABEL = "tandem.test=build_and_push"


def run(*arguments, env, script=SCRIPT):
    return subprocess.run(
        [script, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def fail_with_message(*arguments, env, status=1, script=SCRIPT):
    """Run the script, which must fail; return its error message."""
    done = run(*arguments, env=env, script=script)
    assert done.returncode == status, done
    assert not done.stdout
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("build_and_push.sh: "), done.stderr
    return sentence


def docker(*arguments, **options):
    return subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, timeout=120, **options
    ).stdout.decode()


def make_image(name, content, platform="linux/amd64"):
    """Build an image with one file, for any platform."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, data in (("content", content), ("Dockerfile", b"FROM scratch\nCOPY content /\n")):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    docker("build", "--platform", platform, "--label", LABEL, "-t", name, "-", input=archive.getvalue())
    return name


def put_before_docker(folder, env, cases):
    """Return an environment in which each call of docker first runs `cases`, in shell syntax."""
    program = folder / "docker"
    real = shutil.which("docker")
    program.write_text(
        f'#!/bin/bash\nset -e\ndocker() {{ {real} "$@"; }}\ncase "$*" in\n{cases}\nesac\ndocker "$@"\n'
    )
    program.chmod(0o755)
    return {**env, "PATH": f"{folder}:{env['PATH']}"}


def remove_images():
    images = docker("image", "ls", "--quiet", "--no-trunc", f"--filter=label={LABEL}").split()
    if images:
        docker("image", "rm", "--force", *sorted(set(images)))


@pytest.fixture(scope="module")
def ecr(tmp_path_factory):
    required = os.environ.get("REQUIRE_DOCKER") == "1"
    engine = ["docker", "info"]
    if required:
        subprocess.run([ROOT / "tests" / "docker" / "engine.sh"], check=True, timeout=600)
    elif not shutil.which("docker") or subprocess.run(engine, capture_output=True, check=False).returncode:
        pytest.skip("no Docker engine answers (tests/docker/engine.sh starts one)")
    elif os.geteuid():
        pytest.skip("only root can map the host names of ECR to this computer")
    with stand_in(tmp_path_factory.mktemp("ecr")) as running:
        try:
            yield running
        finally:
            remove_images()


@pytest.fixture
def image(ecr, request):
    return make_image("tandem-push:1.0", request.node.name.encode())


@pytest.fixture
def env(ecr):
    return dict(ecr.variables)


@pytest.fixture
def name(request):
    """Return the name of a repository for this test only."""
    return "tests/" + re.sub("[^a-z0-9]+", "-", request.node.name).strip("-")


@pytest.fixture
def commands(tmp_path):
    """Return an environment in which docker, aws and make record their call and fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for command in ("docker", "aws", "make"):
        program = folder / command
        program.write_text(f'#!/bin/sh\necho "$0 $*" >> "{tmp_path}/trace"\nexit 1\n')
        program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "AWS_REGION": "us-west-2", "HOME": str(tmp_path)}


@pytest.fixture
def tree(tmp_path):
    """Return a new git repository with a copy of the script and an image that is built from one file."""
    folder = tmp_path / "tree"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    (folder / "Dockerfile").write_text(
        f'FROM scratch\nLABEL {LABEL}\nARG CUDA=12\nLABEL cuda=$CUDA\nCOPY content /\nCMD ["train"]\n'
    )
    (folder / "content").write_text(str(tmp_path))
    build = "\tdocker build --build-arg CUDA=$(CUDA) -t $(IMAGE):$(TAG) .\n"
    (folder / "Makefile").write_text(f"CUDA := 12\ncpu-image gpu-image:\n{build}")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    commit(folder)
    return folder


def git(folder, *arguments):
    return subprocess.run(
        ["git", "-C", folder, *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def commit(folder):
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    git(folder, *who, "commit", "--quiet", "--all", "--message", "A state")


@pytest.mark.image
class TestPush:
    def test_the_image_is_pushed_and_only_its_uri_is_printed(self, ecr, env, image, name):
        """The image in the new repository is the one that was pushed, in a format that SageMaker accepts."""
        done = run(name, "v1", "--local", image, env=env)
        assert done.returncode == 0, done.stderr
        address = f"{REGISTRY}/{name}:v1"
        assert done.stdout == address + "\n"

        sent = docker("image", "inspect", "--format", "{{.Id}}", image)
        docker("image", "rm", address)
        pulled = docker("pull", "--quiet", address, env=env)
        assert pulled.strip() == address
        assert docker("image", "inspect", "--format", "{{.Id}}", address) == sent

        described = json.loads(ecr.aws("ecr", "describe-images", "--repository-name", name))["imageDetails"]
        assert [(one["imageTags"], one["imageManifestMediaType"]) for one in described] == [
            (["v1"], DOCKER_MANIFEST)
        ]
        digests = docker("image", "inspect", "--format", '{{join .RepoDigests " "}}', address).split()
        assert f"{REGISTRY}/{name}@{described[0]['imageDigest']}" in digests
        made = json.loads(ecr.aws("ecr", "describe-repositories", "--repository-names", name))[
            "repositories"
        ][0]
        assert made["imageScanningConfiguration"] == {"scanOnPush": True}
        assert made["imageTagMutability"] == "MUTABLE"

    def test_a_tag_is_overwritten_only_on_request(self, ecr, env, image, name):
        """An existing tag keeps its image, unless --overwrite is given."""

        def read_digest():
            return ecr.aws(
                "ecr", "describe-images", "--repository-name", name, "--query", "imageDetails[0].imageDigest"
            )

        assert run(name, "v1", "--local", image, env=env).returncode == 0
        first = read_digest()
        make_image(image, b"another content")
        sentence = fail_with_message(name, "v1", "--local", image, env=env)
        assert f"{name}:v1 exists already (sha256:" in sentence
        assert "--overwrite" in sentence
        assert read_digest() == first
        done = run(name, "v1", "--local", image, "--overwrite", env=env)
        assert done.returncode == 0, done.stderr
        assert read_digest() != first
        done = run(name, "v1", "--local", image, "--overwrite", env=env)
        assert done.returncode == 0, done.stderr

    def test_immutable_tags_are_final(self, ecr, env, image, name):
        """A repository created with --immutable-tags is immutable in ECR, even for --overwrite."""
        assert run(name, "v1", "--local", image, "--immutable-tags", env=env).returncode == 0
        query = ["--query", "repositories[0].imageTagMutability", "--output", "text"]
        assert ecr.aws("ecr", "describe-repositories", "--repository-names", name, *query) == "IMMUTABLE"
        sentence = fail_with_message(name, "v1", "--local", image, "--overwrite", env=env)
        assert "tags are immutable; give another TAG" in sentence
        assert run(name, "v2", "--local", image, "--immutable-tags", env=env).returncode == 0

    def test_an_existing_repository_is_not_changed(self, ecr, env, image, name):
        """--immutable-tags is rejected, with instructions, if the repository exists with mutable tags."""
        ecr.aws("ecr", "create-repository", "--repository-name", name)
        sentence = fail_with_message(name, "v1", "--local", image, "--immutable-tags", env=env)
        assert f"aws ecr put-image-tag-mutability --repository-name {name}" in sentence

    def test_china_has_its_own_registries(self, env, image, name):
        """In a region in China, the image is pushed to a registry under amazonaws.com.cn."""
        done = run(name, "v1", "--local", image, env={**env, "AWS_REGION": "cn-north-1"})
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{REGISTRY_IN_CHINA}/{name}:v1\n"

    def test_the_region_of_the_aws_configuration_is_used(self, env, image, name, tmp_path):
        """Without AWS_REGION and AWS_DEFAULT_REGION, the AWS CLI's configured region is used."""
        (tmp_path / "config").write_text("[default]\nregion = us-west-2\n")
        del env["AWS_REGION"]
        done = run(name, "v1", "--local", image, env={**env, "AWS_CONFIG_FILE": str(tmp_path / "config")})
        assert done.stdout == f"{REGISTRY}/{name}:v1\n", done.stderr

    def test_the_image_is_built_by_make(self, env, name, tree):
        """The image's name and the variables are passed to make, and are in the tag with the revision."""
        done = run(name, "--image", "gpu", "CUDA=11", env=env, script=tree / "build_and_push.sh")
        assert done.returncode == 0, done.stderr
        address = f"{REGISTRY}/{name}:gpu-cuda11-{git(tree, 'rev-parse', '--short=12', 'HEAD')}"
        assert done.stdout == address + "\n"
        assert docker("image", "inspect", "--format", "{{.Config.Labels.cuda}}", address) == "11\n"

    def test_a_failed_build_is_not_pushed(self, ecr, env, name, tree):
        """If the build fails, the error says so and the repository stays empty."""
        (tree / "content").unlink()
        sentence = fail_with_message(name, "v1", env=env, script=tree / "build_and_push.sh")
        assert "building the cpu image failed" in sentence
        assert json.loads(ecr.aws("ecr", "list-images", "--repository-name", name))["imageIds"] == []

    def test_a_manifest_that_sagemaker_rejects_is_reported(self, env, image, name, tmp_path):
        """If a client pushes an OCI manifest, the error names the command that deletes the image."""
        manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []})
        put = f"aws --region us-west-2 ecr put-image --repository-name {name} --image-tag v1"
        env = put_before_docker(
            tmp_path, env, f"""push*) docker "$@"; {put} --image-manifest '{manifest}'; exit ;;"""
        )
        sentence = fail_with_message(name, "v1", "--local", image, env=env)
        assert f"was pushed as {OCI_MANIFEST}, which SageMaker's CreateModel rejects" in sentence
        assert f"aws ecr batch-delete-image --repository-name {name} --image-ids imageTag=v1" in sentence

    def test_buildx_pushes_from_containerds_image_store(self, env, image, name, tmp_path):
        """If the engine would push an OCI image, buildx converts and pushes it, without provenance."""
        address, trace = f"{REGISTRY}/{name}:v1", tmp_path / "trace"
        cases = f"""
            info*) echo '[[driver-type io.containerd.snapshotter.v1]]'; exit ;;
            'buildx version') exit ;;
            'buildx build'*)
                {{ echo "$*"; cat; }} >{trace}
                docker tag {image} {address}
                docker push {address}
                exit ;;
        """
        done = run(name, "v1", "--local", image, env=put_before_docker(tmp_path, env, cases))
        assert done.returncode == 0, done.stderr
        assert done.stdout == address + "\n"
        call, dockerfile = trace.read_text().splitlines()
        assert "--provenance=false --sbom=false" in call
        assert f"--output type=image,name={address},push=true,oci-mediatypes=false" in call
        assert dockerfile == f"FROM {image}"

    def test_containerds_image_store_requires_buildx(self, env, image, name, tmp_path):
        """If the engine would push an OCI image and buildx is not installed, the script fails."""
        cases = "info*) echo '[[driver-type io.containerd.snapshotter.v1]]'; exit ;; buildx*) exit 1 ;;"
        sentence = fail_with_message(
            name, "v1", "--local", image, env=put_before_docker(tmp_path, env, cases)
        )
        assert "install docker buildx" in sentence

    def test_the_password_is_neither_printed_nor_left_in_a_file(self, env, image, name, tmp_path):
        """The registry's password is not in the output, and no temporary file is left."""
        folder = tmp_path / "temporary"
        folder.mkdir()
        done = run(name, "v1", "--local", image, env={**env, "TMPDIR": str(folder)})
        assert done.returncode == 0, done.stderr
        assert f"{ACCOUNT}-auth-token" not in done.stdout + done.stderr
        assert list(folder.iterdir()) == []


@pytest.mark.image
class TestRefusals:
    def test_without_a_docker_client(self, env, tmp_path):
        """The error says that Docker is not installed."""
        for command in ("bash", "cat", "dirname", "env", "git", "mktemp", "rm"):
            (tmp_path / command).symlink_to(shutil.which(command))
        assert "no Docker client" in fail_with_message("digits", "v1", env={**env, "PATH": str(tmp_path)})

    def test_without_an_aws_client(self, env, tmp_path):
        """The error says that the AWS CLI is not installed."""
        for command in ("bash", "cat", "dirname", "docker", "env", "git", "mktemp", "rm"):
            (tmp_path / command).symlink_to(shutil.which(command))
        assert "no AWS CLI (aws)" in fail_with_message("digits", "v1", env={**env, "PATH": str(tmp_path)})

    def test_an_engine_that_does_not_answer(self, env, tmp_path):
        """The error names the engine's address."""
        socket = f"unix://{tmp_path}/docker.sock"
        sentence = fail_with_message("digits", "v1", env={**env, "DOCKER_HOST": socket})
        assert "the Docker engine does not answer" in sentence
        assert socket in sentence

    def test_without_credentials(self, env, image, name):
        """The error says how to set credentials."""
        del env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
        sentence = fail_with_message(name, "v1", "--local", image, env=env)
        assert "finds no credentials" in sentence
        assert "AWS_PROFILE" in sentence

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("ExpiredToken", "the AWS credentials have expired"),
            ("InvalidClientTokenId", "rejects these credentials"),
        ],
    )
    def test_credentials_that_aws_rejects(self, env, image, name, code, words):
        """The error distinguishes expired credentials from wrong ones."""
        with refusing_sts(code) as endpoint:
            assert words in fail_with_message(
                name, "v1", "--local", image, env={**env, "AWS_ENDPOINT_URL": endpoint}
            )

    def test_without_permission(self, ecr, env, image, name):
        """The error names the missing action and the policy statement that allows it."""
        allowed = ["ecr:DescribeRepositories", "ecr:DescribeImages"]
        with limited_user(ecr, name.rsplit("/")[-1], allowed) as key:
            sentence = fail_with_message(name, "v1", "--local", image, env={**env, **key})
        resource = f"arn:aws:ecr:us-west-2:{ACCOUNT}:repository/{name}"
        statement = {"Effect": "Allow", "Action": "ecr:CreateRepository", "Resource": resource}
        assert "are not allowed to perform ecr:CreateRepository" in sentence
        assert json.dumps(statement) in sentence

    def test_login_without_permission(self, ecr, env, image, name):
        """The registry's token requires the resource "*", and the policy statement in the error has it."""
        ecr.aws("ecr", "create-repository", "--repository-name", name)
        allowed = ["ecr:DescribeRepositories", "ecr:DescribeImages"]
        with limited_user(ecr, name.rsplit("/")[-1], allowed) as key:
            sentence = fail_with_message(name, "v1", "--local", image, env={**env, **key})
        statement = {"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"}
        assert json.dumps(statement) in sentence

    def test_an_unknown_region(self, env, image, name):
        """If the region's endpoint cannot be reached, the error asks whether the region exists."""
        del env["AWS_ENDPOINT_URL"]
        sentence = fail_with_message(name, "v1", "--local", image, env={**env, "AWS_REGION": "us-nowhere-7"})
        assert 'is "us-nowhere-7" an AWS region' in sentence

    def test_credentials_of_another_partition(self, env, image, name):
        """Credentials are rejected if the region belongs to another partition."""
        sentence = fail_with_message(
            name, "v1", "--local", image, env={**env, "AWS_REGION": "us-isof-south-1"}
        )
        assert "us-isof-south-1 belongs to the partition aws-iso-f" in sentence

    def test_an_image_for_another_platform(self, ecr, env, name):
        """An image that SageMaker cannot run is not pushed."""
        image = make_image("tandem-push:arm", b"content", platform="linux/arm64")
        assert "is for linux/arm64, but SageMaker runs linux/amd64" in fail_with_message(
            name, "v1", "--local", image, env=env
        )

    def test_a_missing_image(self, env, name):
        """The error names the image that the engine does not have."""
        assert "no image tandem-push:none" in fail_with_message(
            name, "v1", "--local", "tandem-push:none", env=env
        )


class TestDryRun:
    def test_no_command_is_run(self, commands, tmp_path):
        """A dry run prints the commands and the URI, and runs neither docker nor aws nor make."""
        done = run("digits", "v1", "--image", "gpu", "CUDA=11", "--dry-run", env=commands)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "trace").exists()
        lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
        address = "ACCOUNT.dkr.ecr.us-west-2.amazonaws.com/digits:v1"
        assert lines[-1] == address
        starts = [
            "aws sts get-caller-identity ",
            "aws ecr describe-repositories --repository-names digits ",
            "aws ecr create-repository --repository-name digits --image-tag-mutability MUTABLE ",
            "aws ecr describe-images --repository-name digits --image-ids imageTag=v1 ",
            "aws ecr get-login-password --region us-west-2 | docker login --username AWS --password-stdin ",
            "make ",
            "docker image inspect ",
            f"docker push {address}",
            "aws ecr describe-images ",
        ]
        assert [line.startswith(start) for line, start in zip(lines[:-1], starts, strict=True)] == [
            True
        ] * len(starts)
        assert " gpu-image IMAGE=ACCOUNT.dkr.ecr.us-west-2.amazonaws.com/digits TAG=v1 CUDA=11" in done.stdout

    def test_commands_can_be_pasted(self, commands):
        """Each printed line is valid shell syntax."""
        done = run("digits", "--local", "digits:1.0", "--immutable-tags", "--dry-run", env=commands)
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True, timeout=20)
        assert "docker tag digits:1.0 ACCOUNT.dkr.ecr.us-west-2.amazonaws.com/digits:1.0\n" in done.stdout
        assert "--image-tag-mutability IMMUTABLE" in done.stdout

    @pytest.mark.parametrize(
        ("region", "domain"),
        [
            ("eu-central-1", "amazonaws.com"),
            ("us-gov-west-1", "amazonaws.com"),
            ("cn-northwest-1", "amazonaws.com.cn"),
            ("us-iso-east-1", "c2s.ic.gov"),
            ("us-isob-east-1", "sc2s.sgov.gov"),
            ("eu-isoe-west-1", "cloud.adc-e.uk"),
            ("us-isof-south-1", "csp.hci.ic.gov"),
            ("eusc-de-east-1", "amazonaws.eu"),
        ],
    )
    def test_each_partition_has_its_domain(self, commands, region, domain):
        """The registry's domain is that of the partition."""
        done = run("digits", "v1", "--dry-run", env={**commands, "AWS_REGION": region})
        assert done.stdout.splitlines()[-1] == f"ACCOUNT.dkr.ecr.{region}.{domain}/digits:v1"

    def test_the_default_tag_comes_from_git(self, commands, tree):
        """The default tag is the image and the version or revision, with -dirty for uncommitted changes."""

        def read_tag(*arguments):
            done = run("digits", "--dry-run", *arguments, env=commands, script=tree / "build_and_push.sh")
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()[-1].rpartition(":")[2]

        revision = git(tree, "rev-parse", "--short=12", "HEAD")
        assert read_tag() == f"cpu-{revision}"
        assert read_tag("--image", "gpu", "CUDA=11") == f"gpu-cuda11-{revision}"
        (tree / "new").touch()
        assert read_tag("--image", "serve") == f"serve-{revision}-dirty"
        (tree / "new").unlink()
        git(tree, "tag", "v1.2")
        assert read_tag() == "cpu-v1.2"

    def test_a_region_is_required(self, commands):
        """Without a region, the error says how to set one; an account is not required."""
        del commands["AWS_REGION"]
        assert "no AWS region is set" in fail_with_message("digits", "v1", "--dry-run", env=commands)
        done = run("digits", "v1", "--dry-run", env={**commands, "AWS_DEFAULT_REGION": "eu-west-1"})
        assert "eu-west-1.amazonaws.com/digits:v1" in done.stdout


class TestArguments:
    @pytest.mark.parametrize(
        "name", ["Digits", "d", "digits-", "-digits", "a___b", "a//b", "a:v1", "a" * 257, "dígits"]
    )
    def test_invalid_repository_names(self, commands, name):
        """A name that ECR would reject is rejected at once."""
        done = run(name, "v1", "--dry-run", env=commands)
        assert done.returncode == 2
        assert "is not a valid name for an ECR repository" in done.stderr or "no option" in done.stderr

    @pytest.mark.parametrize("name", ["digits", "a/b", "team-1/digits_2", "a__b", "a--b.c"])
    def test_valid_repository_names(self, commands, name):
        """A name that ECR accepts is accepted."""
        assert run(name, "v1", "--dry-run", env=commands).returncode == 0

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "NAME"),
            (["digits", "v1", "more"], '"more"'),
            (["digits", "latest"], '"latest" does not identify'),
            (["digits", "v1/2"], '"v1/2" is not a valid tag'),
            (["digits", ".v1"], '".v1" is not a valid tag'),
            (["digits", "v" * 129], "is not a valid tag"),
            (["digits", "v1", "--image", "tpu"], 'not "tpu"'),
            (["digits", "v1", "--image", ""], "--image needs a value"),
            (["digits", "v1", "--push"], "no option --push"),
            (["digits", "--local", "digits"], "give a TAG"),
            (["digits", "--local", "digits:latest"], "give a TAG"),
            (["digits", "--local", "localhost:5000/digits"], "give a TAG"),
            (["digits", "--local", "digits@sha256:0123"], "give a TAG"),
            (["digits", "v1", "--local", "digits:1", "--image", "gpu"], "--local pushes an image as it is"),
            (["digits", "v1", "--local", "digits:1", "CUDA=11"], "--local pushes an image as it is"),
        ],
    )
    def test_wrong_arguments_are_reported(self, commands, arguments, words):
        """Wrong arguments result in status 2 and a sentence that says what is wrong."""
        assert words in fail_with_message(*arguments, "--dry-run", env=commands, status=2)

    def test_without_a_git_revision_a_tag_is_required(self, commands, tree):
        """If there is no git commit, TAG must be given."""
        shutil.rmtree(tree / ".git")
        script = tree / "build_and_push.sh"
        env = {**commands, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
        assert "give a TAG" in fail_with_message("digits", "--dry-run", env=env, script=script, status=2)

    def test_a_malformed_region(self, commands):
        """A malformed region is rejected with an error that names it."""
        assert '"us_west"' in fail_with_message(
            "digits", "v1", "--dry-run", env={**commands, "AWS_REGION": "us_west"}
        )

    def test_help(self, commands):
        """--help describes every option, on standard output."""
        done = run("--help", env=commands)
        assert done.returncode == 0
        cases = re.findall(r"^    (-[-a-z |]+)\)", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
        options = {word for case in cases for word in re.findall(r"--[a-z-]+", case)}
        assert options == {"--help", "--image", "--local", "--immutable-tags", "--overwrite", "--dry-run"}
        assert all(option in done.stdout for option in options - {"--help"})


@contextlib.contextmanager
def limited_user(ecr, user, actions):
    """Turn on permission checks, and yield the key of a user who is allowed to perform only `actions`."""
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
    ecr.aws("iam", "create-user", "--user-name", user)
    document = ["--policy-name", "limits", "--policy-document", json.dumps(policy)]
    ecr.aws("iam", "put-user-policy", "--user-name", user, *document)
    key = json.loads(ecr.aws("iam", "create-access-key", "--user-name", user))["AccessKey"]
    ecr.set_unchecked_calls("0")
    try:
        yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    finally:
        ecr.set_unchecked_calls("inf")


@contextlib.contextmanager
def refusing_sts(code):
    """Answer every request as STS does when it rejects the credentials."""
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"

    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(403)
            self.send_header("Content-Type", "text/xml")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
