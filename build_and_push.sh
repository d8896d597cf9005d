#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: ./build_and_push.sh [OPTION]... NAME [TAG] [VARIABLE=VALUE]...

Builds an image and pushes it to the ECR repository NAME of your AWS account. Creates the repository if it does
not exist. Prints the image's URI on the last line of standard output; all other output goes to standard error.

  NAME              the repository, such as digits or vision/digits
  TAG               default: the image and the version from git, such as cpu-v1.2-4-g0123456789ab, with -dirty
                    if the tree has uncommitted changes; with --local, the tag of that image
  VARIABLE=VALUE    passed to make, such as CUDA=11, BASE_IMAGE=... or ALGORITHM=...

  --image IMAGE     cpu (the default), gpu or serve
  --local IMAGE     push this image of the Docker engine as it is, without a build
  --immutable-tags  create the repository with immutable tags, so that ECR never overwrites a tag
  --overwrite       push even if the repository already has the tag
  --dry-run         print the commands without running them

The region is AWS_REGION, or else AWS_DEFAULT_REGION, or else the AWS CLI's configured region.
docs/push.md lists the required permissions.
TEXT
}

fail() {
  echo "build_and_push.sh: $1" >&2
  exit "${2:-1}"
}

misuse() {
  fail "$1 See ./build_and_push.sh --help." 2
}

# A dry run's commands are its output; a real run's are its log.
show() {
  if [ -n "$dry_run" ]; then echo "$1"; else echo "+ $1" >&2; fi
}

quote() {
  local word line=
  for word; do
    case "$word" in *[!A-Za-z0-9_./:=@+-]*) word="'$word'" ;; esac
    line+=" $word"
  done
  echo "${line# }"
}

run() {
  show "$(quote "$@")"
  [ -n "$dry_run" ] || "$@" >&2
}

# Sets `answer`. On failure, the output of the AWS CLI is in $scratch/errors. Its version 1 does not read AWS_REGION.
query() {
  answer=$(aws "$@" --region "$region" 2>"$scratch/errors")
}

call() {
  show "$(quote aws "$@" --region "$region")"
  [ -n "$dry_run" ] || query "$@"
}

error_matches() {
  grep -Eqi -- "$1" "$scratch/errors"
}

last_error() {
  grep '[^[:space:]]' "$scratch/errors" | tail -n 1
}

# Exits with one sentence about the error in $scratch/errors, which occurred during the IAM action $1.
explain() {
  local action resource="arn:$partition:ecr:$region:$account:repository/$name"
  action=$(sed -nE 's/.*not authorized to perform: ([a-z0-9-]+:[A-Za-z]+).*/\1/p' "$scratch/errors" | head -n 1)
  action=${action:-$1}
  case "$action" in ecr:GetAuthorizationToken | sts:*) resource='*' ;; esac
  if error_matches 'Unable to locate credentials|NoCredentials'; then
    fail 'the AWS CLI finds no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run "aws configure".'
  elif error_matches 'ExpiredToken|RequestExpired|token has expired|session .* has expired|credentials .*expired'; then
    fail 'the AWS credentials have expired; get new ones, for example with "aws sso login".'
  elif error_matches 'InvalidClientTokenId|UnrecognizedClient|InvalidAccessKeyId|SignatureDoesNotMatch|AuthFailure'; then
    fail "AWS rejects these credentials in $region: the key is wrong or deleted, or the region is not enabled for the account ($(last_error))."
  elif error_matches 'AccessDenied|not authorized to perform'; then
    fail "these credentials are not allowed to perform $action; add {\"Effect\": \"Allow\", \"Action\": \"$action\", \"Resource\": \"$resource\"} to their IAM policy (docs/push.md lists all permissions)."
  elif error_matches 'Could not connect to the endpoint|Connect timeout|Could not resolve'; then
    fail "the AWS endpoint cannot be reached ($(last_error)); is \"$region\" an AWS region, and does this computer have access to it?"
  fi
  fail "$1 failed: $(last_error)"
}

# Fails if the engine does not have the image $1, or if SageMaker cannot run it.
inspect() {
  show "docker image inspect --format '{{.Os}}/{{.Architecture}}' $1"
  [ -z "$dry_run" ] || return 0
  local platform
  platform=$(docker image inspect --format '{{.Os}}/{{.Architecture}}' "$1" 2>"$scratch/errors") ||
    fail "the Docker engine has no image $1: $(last_error)"
  [ "$platform" = linux/amd64 ] || fail "$1 is for $platform, but SageMaker runs linux/amd64."
}

LC_ALL=C # so that [a-z] matches only ASCII letters
image='' local_image='' mutability=MUTABLE overwrite='' dry_run='' scratch='' answer='' containerd='' account=ACCOUNT
words=() variables=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage && exit ;;
    --image | --local)
      [ -n "${2-}" ] || misuse "$1 needs a value."
      if [ "$1" = --image ]; then image=$2; else local_image=$2; fi
      shift
      ;;
    --immutable-tags) mutability=IMMUTABLE ;;
    --overwrite) overwrite=yes ;;
    --dry-run) dry_run=yes ;;
    -*) misuse "there is no option $1." ;;
    [A-Z]*=*) variables+=("$1") ;;
    *) words+=("$1") ;;
  esac
  shift
done
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

[ ${#words[@]} -gt 0 ] || misuse 'the NAME of an ECR repository is missing.'
[ ${#words[@]} -lt 3 ] || misuse "expected only NAME and TAG, but there is also \"${words[2]}\"."
name=${words[0]} tag=${words[1]-}
[ -z "$local_image" ] || [ -z "$image${variables[*]-}" ] ||
  misuse '--local pushes an image as it is; it cannot be combined with --image or variables for make.'
image=${image:-cpu}
[[ $image =~ ^(cpu|gpu|serve)$ ]] || misuse "--image must be cpu, gpu or serve, not \"$image\"."

part='[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*'
if ! [[ $name =~ ^$part(/$part)*$ ]] || [ ${#name} -lt 2 ] || [ ${#name} -gt 256 ]; then
  fail "\"$name\" is not a valid name for an ECR repository; use 2 to 256 lower-case letters and digits, with single . _ / or hyphens between them, and give the tag as a separate argument." 2
fi

if [ -z "$tag" ] && [ -n "$local_image" ]; then
  last=${local_image##*/} last=${last%@*}
  case "$last" in *:*) tag=${last#*:} ;; esac
  [ -n "$tag" ] && [ "$tag" != latest ] || fail "give a TAG: $local_image has no tag that identifies its contents." 2
elif [ -z "$tag" ]; then
  tag=$image-
  for variable in ${variables[@]+"${variables[@]}"}; do
    case "$variable" in CUDA=?*) tag+=cuda${variable#CUDA=}- ;; esac
  done
  revision=$(git -C "$here" describe --tags --always --abbrev=12) || fail 'git has no revision for the default tag; give a TAG.' 2
  tag+=$revision
  [ -z "$(git -C "$here" status --porcelain)" ] || tag+=-dirty
fi
[ "$tag" != latest ] || fail 'the tag "latest" does not identify the contents of the image; give another TAG, or none to use the git revision.' 2
if ! [[ $tag =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] || [ ${#tag} -gt 128 ]; then
  fail "\"$tag\" is not a valid tag; use up to 128 letters, digits, . _ and -, and begin with neither . nor -." 2
fi

if [ -z "$dry_run" ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  command -v docker >/dev/null || fail 'there is no Docker client (docker) on PATH; install Docker.'
  docker version --format '{{.Server.Version}}' >/dev/null 2>"$scratch/errors" ||
    fail "the Docker engine does not answer: $(last_error)"
  # containerd's image store pushes images as OCI, which SageMaker rejects; buildx can convert them.
  case "$(docker info --format '{{.DriverStatus}}')" in *io.containerd.snapshotter*) containerd=yes ;; esac
  [ -z "$containerd" ] || docker buildx version >/dev/null 2>&1 ||
    fail "this engine uses containerd's image store, from which only buildx can push in a format that SageMaker accepts; install docker buildx."
  command -v aws >/dev/null || fail 'there is no AWS CLI (aws) on PATH; install it: https://aws.amazon.com/cli/.'
fi
region=${AWS_REGION:-${AWS_DEFAULT_REGION:-}}
if [ -z "$region" ] && command -v aws >/dev/null; then region=$(aws configure get region || true); fi
[ -n "$region" ] || fail 'no AWS region is set; set AWS_REGION, or run "aws configure".'
[[ $region =~ ^[a-z]+(-[a-z]+)+-[0-9]+$ ]] || fail "\"$region\" is not the name of an AWS region; expected one such as us-west-2."

# Each AWS partition has its own domain.
case "$region" in
  cn-*) partition=aws-cn domain=amazonaws.com.cn ;;
  us-gov-*) partition=aws-us-gov domain=amazonaws.com ;;
  us-iso-*) partition=aws-iso domain=c2s.ic.gov ;;
  us-isob-*) partition=aws-iso-b domain=sc2s.sgov.gov ;;
  eu-isoe-*) partition=aws-iso-e domain=cloud.adc-e.uk ;;
  us-isof-*) partition=aws-iso-f domain=csp.hci.ic.gov ;;
  eusc-*) partition=aws-eusc domain=amazonaws.eu ;;
  *) partition=aws domain=amazonaws.com ;;
esac
export AWS_PAGER=

[ -z "$local_image" ] || inspect "$local_image"

call sts get-caller-identity --query '[Account,Arn]' --output text || explain sts:GetCallerIdentity
if [ -z "$dry_run" ]; then
  read -r account arn <<<"$answer"
  [[ $arn == "arn:$partition:"* ]] ||
    fail "the credentials are those of $arn, but $region belongs to the partition $partition; set AWS_REGION or AWS_PROFILE."
fi
registry=$account.dkr.ecr.$region.$domain
address=$registry/$name:$tag

# Everything that can fail is checked before the build, which takes minutes.
if call ecr describe-repositories --repository-names "$name" --query 'repositories[0].imageTagMutability' --output text; then
  found=$answer
else
  error_matches RepositoryNotFoundException || explain ecr:DescribeRepositories
  found=
fi
if [ -z "$found" ]; then
  [ -z "$dry_run" ] || echo '# if the repository does not exist:'
  call ecr create-repository --repository-name "$name" --image-tag-mutability "$mutability" \
    --image-scanning-configuration scanOnPush=true --query repository.repositoryUri --output text || explain ecr:CreateRepository
elif [ "$mutability $found" = 'IMMUTABLE MUTABLE' ]; then
  fail "the repository $name exists already, and its tags are mutable; leave --immutable-tags out, or first run: aws ecr put-image-tag-mutability --repository-name $name --image-tag-mutability IMMUTABLE --region $region"
fi

describe_image() {
  call ecr describe-images --repository-name "$name" --image-ids "imageTag=$tag" \
    --query 'imageDetails[0].[imageDigest,imageManifestMediaType]' --output text
}
if ! describe_image; then
  error_matches ImageNotFoundException || explain ecr:DescribeImages
elif [ -n "$dry_run" ]; then
  [ -n "$overwrite" ] || echo '# stops here if the repository already has that tag'
else
  there="$address exists already (${answer%%[[:space:]]*})"
  [ "$found" != IMMUTABLE ] || fail "$there, and the repository's tags are immutable; give another TAG."
  [ -n "$overwrite" ] || fail "$there; give another TAG, or use --overwrite."
fi

show "aws ecr get-login-password --region $region | docker login --username AWS --password-stdin $registry"
if [ -z "$dry_run" ]; then
  query ecr get-login-password || explain ecr:GetAuthorizationToken
  printf '%s' "$answer" | docker login --username AWS --password-stdin "$registry" >&2 ||
    fail "docker login to $registry failed; see the message above."
fi

source=$local_image
if [ -z "$local_image" ]; then
  source=$address
  run make --no-print-directory -C "$here" "$image-image" \
    "IMAGE=$registry/$name" "TAG=$tag" ${variables[@]+"${variables[@]}"} ||
    fail "building the $image image failed; see the messages above. Nothing was pushed."
  inspect "$source"
fi

push() {
  if [ -n "$containerd" ]; then
    run docker buildx build --builder "$(docker context show)" --platform linux/amd64 --provenance=false --sbom=false \
      --output "type=image,name=$address,push=true,oci-mediatypes=false" - <<<"FROM $source"
  else
    [ "$source" = "$address" ] || run docker tag "$source" "$address" || return
    run docker push "$address"
  fi
}
push || fail 'the push failed; see the message above. docs/push.md lists the required permissions.'

# SageMaker's CreateModel accepts only a Docker manifest of one platform. It rejects OCI manifests and indexes; an
# image with provenance or other attestations is an index.
wanted=application/vnd.docker.distribution.manifest.v2+json
describe_image || explain ecr:DescribeImages
if [ -z "$dry_run" ]; then
  read -r digest pushed <<<"$answer"
  [ "$pushed" = "$wanted" ] ||
    fail "$address was pushed as $pushed, which SageMaker's CreateModel rejects (it accepts $wanted); delete it: aws ecr batch-delete-image --repository-name $name --image-ids imageTag=$tag --region $region"
  echo "build_and_push.sh: pushed $digest" >&2
fi
echo "$address"
