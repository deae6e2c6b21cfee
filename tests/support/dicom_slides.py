"""Slides of DICOM, generated: a pyramid without compression, a file a level."""

import numpy as np

TILE_PX = 64


def write_dicom_slide(folder, levels, *, um_per_px=0.5, name="slide"):
    """Writes one series.

    Args:
        folder: Exists.
        levels: Images, (H, W, 3) uint8, the largest first.
        um_per_px: Of the largest.
        name: Begins the files' names.

    Returns:
        The files.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

    series, frame_of_reference, study = generate_uid(), generate_uid(), generate_uid()
    files = []
    for number, image in enumerate(levels):
        height, width = image.shape[:2]
        spacing = um_per_px / 1000 * levels[0].shape[1] / width
        slide = Dataset()
        slide.file_meta = FileMetaDataset()
        slide.file_meta.MediaStorageSOPClassUID = slide.SOPClassUID = VLWholeSlideMicroscopyImageStorage
        slide.file_meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID = generate_uid()
        slide.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slide.StudyInstanceUID, slide.SeriesInstanceUID = study, series
        slide.FrameOfReferenceUID, slide.Modality, slide.InstanceNumber = frame_of_reference, "SM", number + 1
        slide.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED" if number else "NONE"]
        slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows = width, height
        slide.TotalPixelMatrixFocalPlanes = 1
        slide.ImagedVolumeWidth, slide.ImagedVolumeHeight = width * spacing, height * spacing
        slide.ImagedVolumeDepth = 0.001
        slide.Rows = slide.Columns = TILE_PX
        slide.SamplesPerPixel, slide.PlanarConfiguration, slide.PixelRepresentation = 3, 0, 0
        slide.PhotometricInterpretation = "RGB"
        slide.BitsAllocated = slide.BitsStored = 8
        slide.HighBit = 7
        slide.LossyImageCompression, slide.BurnedInAnnotation = "00", "NO"
        slide.DimensionOrganizationType = "TILED_FULL"
        slide.VolumetricProperties, slide.SpecimenLabelInImage = "VOLUME", "NO"
        slide.FocusMethod, slide.ExtendedDepthOfField = "AUTO", "NO"
        slide.NumberOfOpticalPaths = 1
        slide.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
        origin = Dataset()
        origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0.0
        slide.TotalPixelMatrixOriginSequence = Sequence([origin])
        measures = Dataset()
        measures.PixelSpacing, measures.SliceThickness = [spacing, spacing], 0.001
        kind = Dataset()
        kind.FrameType = list(slide.ImageType)
        shared = Dataset()
        shared.PixelMeasuresSequence, shared.WholeSlideMicroscopyImageFrameTypeSequence = (
            Sequence([measures]),
            Sequence([kind]),
        )
        slide.SharedFunctionalGroupsSequence = Sequence([shared])
        path = Dataset()
        path.OpticalPathIdentifier = "1"
        slide.OpticalPathSequence = Sequence([path])
        rows, columns = -(-height // TILE_PX), -(-width // TILE_PX)
        slide.NumberOfFrames = rows * columns
        padded = np.full((rows * TILE_PX, columns * TILE_PX, 3), 255, np.uint8)
        padded[:height, :width] = image
        tiles = padded.reshape(rows, TILE_PX, columns, TILE_PX, 3).swapaxes(1, 2)
        slide.PixelData = np.ascontiguousarray(tiles).tobytes()
        files.append(folder / f"{name}_{number}.dcm")
        slide.save_as(files[-1], enforce_file_format=True)
    return files
