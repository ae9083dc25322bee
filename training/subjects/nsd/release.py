"""Where the files of an NSD release lie, and which sessions are there.

The names are those of the public bucket ``natural-scenes-dataset`` (Allen et al. 2022,
doi:10.1038/s41593-021-00962-x; NSD Data Manual, "Functional data (NSD)" and "ROIs"). A release may
be partial: only the files that an import reads have to be there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import SourceError

N_SUBJECTS = 8
# Spaces and the parts of a session there: one volume, or the surfaces of both hemispheres.
SPACES = {
    "func1pt8mm": ("",),
    "func1mm": ("",),
    "fsaverage": ("lh.", "rh."),
    "nativesurface": ("lh.", "rh."),
}
# NSD's forms of the same numbers. Where a session is there in several, the fastest is read.
_SUFFIXES = (".hdf5", ".nii", ".mgh", ".nii.gz", ".mat")
_SESSION = re.compile(
    r"(?P<part>lh\.|rh\.)?betas_session(?P<number>\d\d)"
    r"(?P<suffix>\.hdf5|\.nii\.gz|\.nii|\.mgh|\.mat)(?P<rest>\..+)?"
)
_STILL_WRITTEN = ".aria2"  # beside a file of the final name that is not whole yet


@dataclass(frozen=True)
class Release:
    """The files of one subject, space and version of the betas.

    Parameters
    ----------
    root : Path
        Holds nsddata, nsddata_betas and, if they were downloaded, nsddata_stimuli.
    subject : int in 1..8
    space : str
        One of `SPACES`.
    betas : str
        Folder of a version: ``"betas_fithrf_GLMdenoise_RR"``.
    """

    root: Path
    subject: int
    space: str
    betas: str

    def __post_init__(self) -> None:
        if not 1 <= self.subject <= N_SUBJECTS:
            raise ValueError(f"subject is {self.subject}, expected 1 to {N_SUBJECTS}.")
        if self.space not in SPACES:
            raise ValueError(f"space is {self.space!r}, expected one of {', '.join(SPACES)}.")

    @property
    def name(self) -> str:
        """``"subj01"``, as NSD writes it."""
        return f"subj{self.subject:02d}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Beginnings of the file names of one session, in the order of the voxels."""
        return SPACES[self.space]

    @property
    def beta_folder(self) -> Path:
        """Folder of the sessions."""
        return self.root / "nsddata_betas" / "ppdata" / self.name / self.space / self.betas

    @property
    def design_file(self) -> Path:
        """Which image is shown in which trial."""
        return self.root / "nsddata" / "experiments" / "nsd" / "nsd_expdesign.mat"

    @property
    def stim_info_file(self) -> Path:
        """The 73,000 images."""
        return self.root / "nsddata" / "experiments" / "nsd" / "nsd_stim_info_merged.csv"

    @property
    def responses_file(self) -> Path:
        """What the subject did in each trial."""
        return self.root / "nsddata" / "ppdata" / self.name / "behav" / "responses.tsv"

    @property
    def stimuli_file(self) -> Path:
        """The pictures."""
        return self.root / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"

    def region_file(self, part: str, atlas: str) -> Path:
        """Label of every voxel or vertex of a part."""
        if part:
            return self._label_folder / f"{part}{atlas}.mgz"
        folder = self.root / "nsddata" / "ppdata" / self.name / self.space / "roi"
        return folder / f"{atlas}.nii.gz"

    def region_names_files(self, atlas: str) -> tuple[Path, ...]:
        """Where the names of the labels may stand, best first."""
        surfaces = self.root / "nsddata" / "freesurfer"
        return tuple(
            surfaces / owner / "label" / f"{atlas}.mgz.ctab" for owner in (self.name, "fsaverage")
        )

    def ncsnr_file(self, part: str) -> Path:
        """Noise-ceiling signal-to-noise ratio of every voxel or vertex of a part."""
        return self.beta_folder / f"{part}ncsnr{'.mgh' if part else '.nii.gz'}"

    @property
    def _label_folder(self) -> Path:
        owner = "fsaverage" if self.space == "fsaverage" else self.name
        return self.root / "nsddata" / "freesurfer" / owner / "label"

    def session_files(self, n_sessions: int | None) -> list[tuple[Path, ...]]:
        """Find the files of the first sessions.

        Parameters
        ----------
        n_sessions : int or None
            None: all that are there.

        Returns
        -------
        sessions : list of tuple of Path
            For each session from the first, a file for each of `parts`.

        Raises
        ------
        SourceError
            If the folder is missing, a session before the last is missing or a download that
            isn't finished, or there are fewer sessions than asked for.
        """
        found = self._list_sessions()
        last = max((number for number, _ in found), default=0)
        if not last:
            raise SourceError(
                f"{self.beta_folder} holds no betas_sessionNN of {', '.join(_SUFFIXES)}; download "
                f"the sessions into it, betas_session01 first."
            )
        if n_sessions is not None and not 1 <= n_sessions <= last:
            raise SourceError(
                f"{self.beta_folder} holds sessions up to {last}, and {n_sessions} were asked "
                f"for; download the others, or ask for 1 to {last} (NSD has 40 sessions of "
                f"subjects 1, 2, 5 and 7, 32 of 3 and 6, 30 of 4 and 8)."
            )
        return [
            tuple(self._whole(found, number, part) for part in self.parts)
            for number in range(1, (n_sessions or last) + 1)
        ]

    def _list_sessions(self) -> dict[tuple[int, str], list[str]]:
        folder = self.beta_folder
        if not folder.is_dir():
            nearest = next(parent for parent in folder.parents if parent.is_dir())
            held = ", ".join(sorted(child.name for child in nearest.iterdir())[:12]) or "nothing"
            raise SourceError(
                f"{folder} is missing ({nearest} holds {held}); expected the release's own folders "
                f"below {self.root}: nsddata, nsddata_betas, nsddata_stimuli. Give the folder that "
                f"holds them, or another space or version of the betas."
            )
        found: dict[tuple[int, str], list[str]] = {}
        for path in sorted(folder.iterdir()):
            match = _SESSION.fullmatch(path.name)
            if match and (match["part"] or "") in self.parts:
                key = int(match["number"]), match["part"] or ""
                found.setdefault(key, []).append(path.name)
        return found

    def _whole(self, found: dict[tuple[int, str], list[str]], number: int, part: str) -> Path:
        names = found.get((number, part), [])
        wanted = f"{part}betas_session{number:02d}"
        keep_others = f", or keep the first {number - 1}" if number > 1 else ""
        for suffix in _SUFFIXES:
            name = f"{wanted}{suffix}"
            if name in names and f"{name}{_STILL_WRITTEN}" not in names:
                return self.beta_folder / name
        if names:
            raise SourceError(
                f"{self.beta_folder / names[-1]} is a download that isn't finished; expected "
                f"{wanted}{_SUFFIXES[0]} or another form of it. Finish the download{keep_others}."
            )
        raise SourceError(
            f"{self.beta_folder} holds no {wanted}, though later files are there; expected every "
            f"session from the first. Download it{keep_others}."
        )
