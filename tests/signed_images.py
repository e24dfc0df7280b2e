# SPDX-License-Identifier: Apache-2.0
"""Signed images: certificates in a key manager, signatures, and a Glance that serves the images.

Nova's own client of Glance reads them, and cursive verifies them, as in a cloud.
"""

import base64
import datetime
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from castellan.common import exception as castellan_exception
from castellan.common.objects import x_509
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nova import objects

from tests.fake_glance import image_record

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Signer:
    """A certificate in the key manager, with its key.

    :ivar id: the key manager's id
    """

    id: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def sign(self, content: bytes) -> dict[str, str]:
        """Return the image properties of a signature of some data."""
        signature = self.key.sign(content, ec.ECDSA(hashes.SHA384()))
        return {
            "img_signature": base64.b64encode(signature).decode(),
            "img_signature_hash_method": "SHA-384",
            "img_signature_key_type": "ECC_SECP384R1",
            "img_signature_certificate_uuid": self.id,
        }


class KeyManager:
    """A key manager with the certificates of this test."""

    def __init__(self) -> None:
        self._certificates: dict[str, x509.Certificate] = {}

    def get(self, context: object, managed_object_id: str) -> x_509.X509:
        if managed_object_id not in self._certificates:
            raise castellan_exception.ManagedObjectNotFoundError(uuid=managed_object_id)
        found = self._certificates[managed_object_id]
        return x_509.X509(found.public_bytes(serialization.Encoding.DER))

    def issue(self, name: str, issuer: Signer | None = None, days: int = 1) -> Signer:
        """Store a new certificate; without an issuer it is an authority of its own.

        :param days: how long it is valid from now on; negative for an expired certificate
        """
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        end = datetime.datetime.now(datetime.UTC) + days * _DAY
        usage = dict.fromkeys(
            (
                *("content_commitment", "key_encipherment", "data_encipherment"),
                *("key_agreement", "crl_sign", "encipher_only", "decipher_only"),
            ),
            False,
        )
        authority = issuer is None
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - 10 * _DAY)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=authority, **usage),
                critical=True,
            )
            .sign(issuer.key if issuer else key, hashes.SHA384())
        )
        found = Signer(str(uuid.uuid4()), certificate, key)
        self._certificates[found.id] = certificate
        return found


@dataclass(frozen=True)
class Served:
    """An image in a Glance.

    :ivar url: of the Glance
    """

    url: str
    record: dict[str, object]

    @property
    def name(self) -> str:
        """Return the engine's name of the image if nothing is verified."""
        return f"novadocker/{self.record['id']}:{str(self.record['checksum'])[:12]}"

    @property
    def meta(self) -> objects.ImageMeta:
        """Return the metadata that Nova passes to the driver."""
        names = ("id", "container_format", "disk_format", "checksum")
        return objects.ImageMeta.from_dict({name: self.record[name] for name in names})


@contextmanager
def served(content: bytes, properties: dict[str, str]) -> Iterator[Served]:
    """Serve one image by the API of Glance.

    :param properties: of the image; the test may change them
    """
    record = image_record(str(uuid.uuid4()), content)
    schema = {"name": "image", "properties": {name: {"is_base": True} for name in record}}

    class Glance(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = schema if "/schemas/" in self.path else record | properties
            body = content if self.path.endswith("/file") else json.dumps(found).encode()
            self.send_response(200)
            kind = "octet-stream" if body is content else "json"
            self.send_header("Content-Type", f"application/{kind}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Glance) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{server.server_port}", record)
        finally:
            server.shutdown()
            thread.join()
