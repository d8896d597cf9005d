#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: ./build_and_push.sh [OPTION]... NAME [TAG] [VARIABLE=VALUE]...

Builds an image, pushes it to the ECR repository NAME of your AWS account, which it creates where it is missing,
and prints the image's address alone on the last line of standard output; all else goes to standard error.

  NAME              the repository, such as digits or vision/digits
  TAG               default: which image, and what git calls this tree: cpu-v1.2-4-g0123456789ab, with -dirty
                    where the tree has changes that no commit has; with --local that image's own tag
  VARIABLE=VALUE    handed to make, such as CUDA=11, BASE_IMAGE=... or ALGORITHM=...

  --image IMAGE     cpu (the default), gpu or serve
  --local IMAGE     push this image of the Docker engine as it is, and build nothing
  --immutable-tags  create the repository so that ECR itself refuses to overwrite a tag
  --overwrite       push also where the repository has the tag already
  --dry-run         print every command and run none

The region is AWS_REGION, AWS_DEFAULT_REGION or what the AWS CLI is configured for, the first there is.
docs/push.md has the permissions that this takes.
TEXT
}

fail() {
  echo "build_and_push.sh: $1" >&2
  exit "${2:-1}"
}

misuse() {
  fail "$1 ./build_and_push.sh --help tells more." 2
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

# Sets `answer`; on failure what the AWS CLI said is in $scratch/errors. Version 1 of it does not read AWS_REGION.
ask() {
  answer=$(aws "$@" --region "$region" 2>"$scratch/errors")
}

call() {
  show "$(quote aws "$@" --region "$region")"
  [ -n "$dry_run" ] || ask "$@"
}

said() {
  grep -Eqi -- "$1" "$scratch/errors"
}

last_words() {
  grep '[^[:space:]]' "$scratch/errors" | tail -n 1
}

# Ends the run with one sentence about the refusal in $scratch/errors, which came when doing $1, an IAM action.
explain() {
  local action resource="arn:$partition:ecr:$region:$account:repository/$name"
  action=$(sed -nE 's/.*not authorized to perform: ([a-z0-9-]+:[A-Za-z]+).*/\1/p' "$scratch/errors" | head -n 1)
  action=${action:-$1}
  case "$action" in ecr:GetAuthorizationToken | sts:*) resource='*' ;; esac
  if said 'Unable to locate credentials|NoCredentials'; then
    fail 'the AWS CLI finds no credentials; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run "aws configure".'
  elif said 'ExpiredToken|RequestExpired|token has expired|session .* has expired|credentials .*expired'; then
    fail 'the AWS credentials have expired; get new ones, with "aws sso login" or from where these came.'
  elif said 'InvalidClientTokenId|UnrecognizedClient|InvalidAccessKeyId|SignatureDoesNotMatch|AuthFailure'; then
    fail "AWS does not take these credentials in $region: the key is wrong or deleted, or the region is not enabled for the account ($(last_words))."
  elif said 'AccessDenied|not authorized to perform'; then
    fail "these credentials may not do $action; their IAM policy needs {\"Effect\": \"Allow\", \"Action\": \"$action\", \"Resource\": \"$resource\"} (all of it: docs/push.md)."
  elif said 'Could not connect to the endpoint|Connect timeout|Could not resolve'; then
    fail "nothing answers there ($(last_words)); is \"$region\" an AWS region, and can this machine reach it?"
  fi
  fail "$1 failed: $(last_words)"
}

# Refuses the image $1 where the engine lacks it or SageMaker cannot run it.
inspect() {
  show "docker image inspect --format '{{.Os}}/{{.Architecture}}' $1"
  [ -z "$dry_run" ] || return 0
  local platform
  platform=$(docker image inspect --format '{{.Os}}/{{.Architecture}}' "$1" 2>"$scratch/errors") ||
    fail "the Docker engine has no image $1: $(last_words)"
  [ "$platform" = linux/amd64 ] || fail "$1 is for $platform, but SageMaker runs linux/amd64."
}

LC_ALL=C # so that [a-z] has 26 letters everywhere
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
[ ${#words[@]} -lt 3 ] || misuse "it takes NAME and TAG, and then there is \"${words[2]}\"."
name=${words[0]} tag=${words[1]-}
[ -z "$local_image" ] || [ -z "$image${variables[*]-}" ] ||
  misuse '--local takes an image as it is: --image and variables for make have no place beside it.'
image=${image:-cpu}
[[ $image =~ ^(cpu|gpu|serve)$ ]] || misuse "--image is cpu, gpu or serve, not \"$image\"."

part='[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*'
if ! [[ $name =~ ^$part(/$part)*$ ]] || [ ${#name} -lt 2 ] || [ ${#name} -gt 256 ]; then
  fail "\"$name\" cannot name an ECR repository: 2 to 256 lower-case letters and digits, single . _ / or hyphens between them (and the tag is a word of its own)." 2
fi

if [ -z "$tag" ] && [ -n "$local_image" ]; then
  last=${local_image##*/} last=${last%@*}
  case "$last" in *:*) tag=${last#*:} ;; esac
  [ -n "$tag" ] && [ "$tag" != latest ] || fail "give a TAG: $local_image has none that tells what is in it." 2
elif [ -z "$tag" ]; then
  tag=$image-
  for variable in ${variables[@]+"${variables[@]}"}; do
    case "$variable" in CUDA=?*) tag+=cuda${variable#CUDA=}- ;; esac
  done
  revision=$(git -C "$here" describe --tags --always --abbrev=12) || fail 'git tells no revision to make a tag from; give a TAG.' 2
  tag+=$revision
  [ -z "$(git -C "$here" status --porcelain)" ] || tag+=-dirty
fi
[ "$tag" != latest ] || fail 'the tag "latest" does not tell what is in the image; give another TAG, or none for the git revision.' 2
if ! [[ $tag =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] || [ ${#tag} -gt 128 ]; then
  fail "\"$tag\" cannot be a tag: up to 128 letters, digits, . _ and -, the first of them neither . nor -; give another TAG." 2
fi

if [ -z "$dry_run" ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  command -v docker >/dev/null || fail 'there is no Docker client (docker) on PATH; install Docker.'
  docker version --format '{{.Server.Version}}' >/dev/null 2>"$scratch/errors" ||
    fail "the Docker engine does not answer: $(last_words)"
  # containerd's image store pushes an image as it was built, with what SageMaker refuses; buildx can convert it.
  case "$(docker info --format '{{.DriverStatus}}')" in *io.containerd.snapshotter*) containerd=yes ;; esac
  [ -z "$containerd" ] || docker buildx version >/dev/null 2>&1 ||
    fail "this engine keeps images in containerd's store, from where only buildx pushes them as SageMaker takes them; install docker buildx."
  command -v aws >/dev/null || fail 'there is no AWS CLI (aws) on PATH; install it: https://aws.amazon.com/cli/.'
fi
region=${AWS_REGION:-${AWS_DEFAULT_REGION:-}}
if [ -z "$region" ] && command -v aws >/dev/null; then region=$(aws configure get region || true); fi
[ -n "$region" ] || fail 'no AWS region is set; set AWS_REGION, or run "aws configure".'
[[ $region =~ ^[a-z]+(-[a-z]+)+-[0-9]+$ ]] || fail "\"$region\" is not the name of an AWS region, such as us-west-2."

# Each partition of AWS has a domain of its own.
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
    fail "the credentials are $arn, but $region belongs to the partition $partition; set AWS_REGION or AWS_PROFILE."
fi
registry=$account.dkr.ecr.$region.$domain
address=$registry/$name:$tag

# Whatever can be refused is asked for before the build, which takes minutes.
if call ecr describe-repositories --repository-names "$name" --query 'repositories[0].imageTagMutability' --output text; then
  found=$answer
else
  said RepositoryNotFoundException || explain ecr:DescribeRepositories
  found=
fi
if [ -z "$found" ]; then
  [ -z "$dry_run" ] || echo '# where there is no such repository:'
  call ecr create-repository --repository-name "$name" --image-tag-mutability "$mutability" \
    --image-scanning-configuration scanOnPush=true --query repository.repositoryUri --output text || explain ecr:CreateRepository
elif [ "$mutability $found" = 'IMMUTABLE MUTABLE' ]; then
  fail "the repository $name is there already, and its tags can be overwritten; leave --immutable-tags out, or first run: aws ecr put-image-tag-mutability --repository-name $name --image-tag-mutability IMMUTABLE --region $region"
fi

describe_image() {
  call ecr describe-images --repository-name "$name" --image-ids "imageTag=$tag" \
    --query 'imageDetails[0].[imageDigest,imageManifestMediaType]' --output text
}
if ! describe_image; then
  said ImageNotFoundException || explain ecr:DescribeImages
elif [ -n "$dry_run" ]; then
  [ -n "$overwrite" ] || echo '# ends here where the repository has that tag'
else
  there="$address is there already (${answer%%[[:space:]]*})"
  [ "$found" != IMMUTABLE ] || fail "$there, and the repository's tags are immutable; give another TAG."
  [ -n "$overwrite" ] || fail "$there; give another TAG, or --overwrite."
fi

show "aws ecr get-login-password --region $region | docker login --username AWS --password-stdin $registry"
if [ -z "$dry_run" ]; then
  ask ecr get-login-password || explain ecr:GetAuthorizationToken
  printf '%s' "$answer" | docker login --username AWS --password-stdin "$registry" >&2 ||
    fail "docker login to $registry failed, for the reason above."
fi

source=$local_image
if [ -z "$local_image" ]; then
  source=$address
  run make --no-print-directory -C "$here" "$image-image" \
    "IMAGE=$registry/$name" "TAG=$tag" ${variables[@]+"${variables[@]}"} ||
    fail "building the $image image failed, for the reason above; nothing was pushed."
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
push || fail 'the push failed, for the reason above; docs/push.md has the permissions that it takes.'

# SageMaker's CreateModel takes Docker's own manifest of one platform, and neither an OCI manifest nor an index,
# which is what provenance and other attestations make of an image.
wanted=application/vnd.docker.distribution.manifest.v2+json
describe_image || explain ecr:DescribeImages
if [ -z "$dry_run" ]; then
  read -r digest pushed <<<"$answer"
  [ "$pushed" = "$wanted" ] ||
    fail "$address was pushed as $pushed, which SageMaker's CreateModel refuses (it takes $wanted); delete it: aws ecr batch-delete-image --repository-name $name --image-ids imageTag=$tag --region $region"
  echo "build_and_push.sh: pushed $digest" >&2
fi
echo "$address"
