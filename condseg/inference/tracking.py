"""Which instances of the frames of a video are the same object."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from condseg.inference.instances import Instances

_CONTINUES = 0.1
"""Min score at which an instance continues a track."""


class Tracker:
    """ByteTrack: instances of a frame are assigned to the tracks by the IoU of their boxes.

    Instances whose score is below that of shown ones can continue a track, not start one. A track
    ends when its object has not been seen for a second.

    Source:
        ByteTrack (ECCV 2022); ``trackers`` of Roboflow. It numbers a track in its second frame;
        here it has a number from its first, so that its color does not change.

    Args:
        score: min score of an instance that starts a track.
        rate: frames per second.

    Raises:
        ValueError: ``trackers`` is not installed.
    """

    def __init__(self, score: float, rate: float) -> None:
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ValueError(
                "color_by is 'track', which needs trackers: pip install 'condseg[video]'; 'class' "
                "and 'instance' need nothing"
            ) from error
        self.score = score
        self.tracker = ByteTrackTracker(
            frame_rate=rate,
            lost_track_buffer=30,  # of frames at 30 per second, whatever the rate
            track_activation_threshold=score,
            high_conf_det_threshold=score,
            minimum_consecutive_frames=1,
        )
        self._numbers = itertools.count(1)

    def __call__(self, found: Instances, seconds: float) -> Instances:
        """The instances of the next frame with their tracks.

        Args:
            found: also those below the score of shown ones.
            seconds: time of the frame.
        """
        candidates = found[found.scores >= min(_CONTINUES, self.score)]
        detections = candidates.to_supervision()
        detections.data["row"] = np.arange(len(candidates))
        tracked = self.tracker.update(detections, timestamp=seconds)
        tracks = np.zeros(len(candidates), dtype=np.int64)
        if len(tracked):
            ids, rows = tracked.tracker_id.copy(), tracked.data["row"]
            # The tracker appends the tracks that an instance of this frame has started, in the
            # order of these instances, and lists their ids as -1.
            started = [track for track in self.tracker.tracks if track.tracker_id == -1]
            first = np.flatnonzero((ids == -1) & (tracked.confidence >= self.score))
            for index, track in zip(first, started, strict=True):
                track.tracker_id = ids[index] = next(self._numbers)
            tracks[rows] = np.maximum(ids, 0)
        return replace(candidates, tracks=tracks)
