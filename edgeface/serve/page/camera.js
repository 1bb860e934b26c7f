/* The browser's own camera: pictures of it as JPEG files. */

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

/* The word that says why a camera could not be opened. */
export function camera_problem(error) {
  return { NotAllowedError: "camera-denied", SecurityError: "camera-insecure" }[error.name] || "camera-none";
}
