#!/bin/sh
# Makes the certificates of the tests of bad receivers: an authority, and for 127.0.0.1 a good one, one that has
# expired, one for another name, and one that nobody signed. One key serves them all; nothing else trusts them.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out key.pem
openssl ecparam -name prime256v1 -genkey -noout -out "$work/authority.key"
openssl req -x509 -new -key "$work/authority.key" -subj "/CN=tests of bad receivers" -days 36500 -out authority.pem
openssl req -new -key key.pem -subj "/CN=receiver" -out "$work/request"
sign() { # NAME ALT-NAME ARGUMENTS…
    name=$1; printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\n' "$2" > "$work/extensions"; shift 2
    openssl x509 -req -in "$work/request" -extfile "$work/extensions" "$@" -out "$name.pem" 2>/dev/null
}
sign good IP:127.0.0.1 -CA authority.pem -CAkey "$work/authority.key" -CAcreateserial -days 36500
sign other-name DNS:someone.example -CA authority.pem -CAkey "$work/authority.key" -CAcreateserial -days 36500
sign unsigned IP:127.0.0.1 -signkey key.pem -days 36500
# Expired: valid for one second, long ago.
: > "$work/index"; echo 01 > "$work/serial"
printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > "$work/extensions"
cat > "$work/ca.cnf" <<CNF
[ca]
default_ca = own
[own]
database = $work/index
serial = $work/serial
new_certs_dir = $work
default_md = sha256
policy = any
[any]
commonName = supplied
CNF
openssl ca -batch -config "$work/ca.cnf" -cert authority.pem -keyfile "$work/authority.key" -in "$work/request" \
    -extfile "$work/extensions" -startdate 20200101000000Z -enddate 20200101000001Z -notext -out expired.pem 2>/dev/null
