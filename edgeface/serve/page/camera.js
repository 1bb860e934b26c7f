/* Cameras, the browser's own and the server's: pictures as JPEG files. */

import { fetch_from } from "./common.js";

const LONGEST = 1280; /* pixels: more only takes longer to send */

export class OwnCamera {
  /* Resolve once there is a picture; raises what getUserMedia does. */
  static async open(video) {
    if (!navigator.mediaDevices) throw new DOMException("no secure context", "SecurityError");
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: false, video: { facingMode: "user", width: { ideal: 1280 }, height: { ideal: 720 } },
    });
    video.srcObject = stream;
    await video.play();
    return new OwnCamera(video, stream);
  }

  constructor(video, stream) {
    Object.assign(this, { video, stream });
    this.canvas = document.createElement("canvas");
  }

  /* Return the picture of now, a Blob of a JPEG, not mirrored; null once the camera has ended. */
  async picture() {
    if (this.stream.getVideoTracks().every((track) => track.readyState === "ended")) return null;
    const { videoWidth, videoHeight } = this.video, scale = Math.min(1, LONGEST / Math.max(videoWidth, videoHeight));
    this.canvas.width = Math.round(videoWidth * scale);
    this.canvas.height = Math.round(videoHeight * scale);
    this.canvas.getContext("2d").drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
    return new Promise((done) => { this.canvas.toBlob(done, "image/jpeg", 0.92); });
  }

  close() {
    for (const track of this.stream.getTracks()) track.stop();
    this.video.srcObject = null;
  }
}

/* A camera of the server, whose pictures are shown in an image. */
export class ServerCamera {
  constructor(image, name) {
    Object.assign(this, { image, path: `kiosk/cameras/${encodeURIComponent(name)}/picture`, closed: false });
  }

  /* Return the newest picture; null while there is none. */
  async picture() {
    const answer = await fetch_from(this.path), blob = answer.ok ? await answer.blob() : null;
    if (blob && !this.closed) {
      const address = URL.createObjectURL(blob);
      this.image.src = address;
      await this.image.decode();
      URL.revokeObjectURL(address);
    }
    return blob;
  }

  close() {
    this.closed = true;
  }
}

/* Names of the server's cameras whose pictures are shown; none without a kiosk. */
export async function server_cameras() {
  const connection = new AbortController();
  try {
    const answer = await fetch_from("kiosk/stream", { signal: connection.signal });
    if (!answer.ok) return [];
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = "", told = null; ;) {
      const { done, value } = await reader.read();
      if (done) return [];
      text += value;
      told = /^event: status\ndata: (.*)\n\n/m.exec(text);
      if (told) return Object.entries(JSON.parse(told[1]).pictures).filter(([, picture]) => picture === "shown").map(([name]) => name);
    }
  } catch {
    return [];
  } finally {
    connection.abort();
  }
}

/* The word that says why a camera could not be opened. */
export function camera_problem(error) {
  return { NotAllowedError: "camera-denied", SecurityError: "camera-insecure" }[error.name] || "camera-none";
}
